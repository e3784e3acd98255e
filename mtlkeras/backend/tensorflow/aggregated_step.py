import tensorflow as tf

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.backend.tensorflow.batch import any_of, both
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.replicas import (
    num_replicas,
    sum_over_replicas,
)
from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import is_loss_scaled
from mtlkeras.optimizers.per_task_optimizer import PerTaskOptimizer


def aggregated_step(batch):
    """Every group in turn; in a group, an aggregator joins the gradients."""
    ran = []
    for index in range(len(batch.model._multi_task.plan.groups)):
        ran.append(AggregatedStep(batch, index).run(ran))
    if isinstance(batch.model.optimizer, PerTaskOptimizer):
        batch.model.optimizer.finish_batch()
    batch.track()


class AggregatedStep(GroupStep):
    """One forward pass, a backward pass per task and one update.

    The aggregator acts on the variables that several tasks of the group reach;
    every head follows the plain gradient of its own loss, and what the model
    adds to the loss (regularizers, `add_loss`) stays outside.
    """

    live = None  # task -> whether it has labels and a finite gradient

    def run(self, ran_before):
        batch = self.batch
        variables = self.plan.group_variables(self.index)
        with tf.GradientTape(persistent=True) as tape:
            losses, _ = self.forward(batch.any_labelled(self.names))
            weighted = {
                name: self._scale(batch.tasks.weighted(name, losses[name]))
                for name in self.names
            }
            extra = None if self.extra is None else self._scale(self.extra)
        rows = {
            name: tape.gradient(weighted[name], variables)
            for name in self.names
        }
        added = [None] * len(variables)
        if extra is not None:
            added = tape.gradient(extra, variables)
        del tape
        self.live = live = {}
        for name in self.names:
            checked = [losses[name]]
            checked += [g for g in rows[name] if g is not None]
            finite = all_finite(checked)
            batch.finite[name] = finite
            live[name] = both(batch.labelled[name], finite)
            batch.ran[name] = live[name]
        gradients = self._join(rows, losses, live, variables)
        gradients = [
            _sum_of(gradient, term)
            for gradient, term in zip(gradients, added, strict=True)
        ]
        any_live = tf.reduce_any(tf.stack(list(live.values())))
        return self.apply(gradients, variables, any_live, ran_before)

    def labelled_in(self, index, tasks):
        # A task whose gradient is not finite is as one without labels.
        if index == self.index and self.live is not None:
            return any_of([self.live[n] for n in self.names if n in tasks])
        return super().labelled_in(index, tasks)

    def _scale(self, loss):
        optimizer = self.model.optimizer
        if isinstance(optimizer, PerTaskOptimizer):
            return optimizer.scale_loss(loss, self.slot)
        return optimizer.scale_loss(loss)

    def _join(self, rows, losses, live, variables):
        """One gradient per variable: aggregated, or the task's own."""
        gradients = [None] * len(variables)
        shared = []
        for position in range(len(variables)):
            users = [n for n in self.names if rows[n][position] is not None]
            if len(users) > 1:
                shared.append(position)
            elif users:
                gradient = tf.convert_to_tensor(rows[users[0]][position])
                gradients[position] = tf.where(
                    live[users[0]], gradient, tf.zeros_like(gradient)
                )
        if not shared:
            return gradients
        scale = self._scale(tf.ones([]))
        stacked = [
            self._stack(rows, live, position, variables[position], scale)
            for position in shared
        ]
        directions = self._aggregate(stacked, losses, live)
        for position, direction in zip(shared, directions, strict=True):
            # `apply` adds up what the replicas give it.
            scaled = direction * tf.cast(scale, direction.dtype)
            scaled = scaled / num_replicas()
            gradients[position] = tf.reshape(scaled, variables[position].shape)
        return gradients

    def _stack(self, rows, live, position, variable, scale):
        """Unscaled gradients of one variable, `[num_tasks, size]`."""
        size = int(tf.TensorShape(variable.shape).num_elements())
        flat = []
        for name in self.names:
            gradient = rows[name][position]
            if gradient is None:
                flat.append(tf.zeros([size], variable.dtype))
                continue
            gradient = tf.reshape(tf.convert_to_tensor(gradient), [size])
            # Selected and not multiplied: NaN times 0 is NaN.
            flat.append(tf.where(live[name], gradient, tf.zeros_like(gradient)))
        stacked = sum_over_replicas(tf.stack(flat))
        if is_loss_scaled(self.model.optimizer, self.slot):
            stacked = stacked / tf.cast(scale, stacked.dtype)
        return stacked

    def _aggregate(self, stacked, losses, live):
        aggregator = self.model._multi_task.update.aggregator
        task_losses = tf.stack([losses[name] for name in self.names])
        task_losses = sum_over_replicas(task_losses)
        flags = tf.stack([tf.convert_to_tensor(live[n]) for n in self.names])
        if isinstance(aggregator, GramianAggregator):
            gramian = tf.add_n(
                [tf.matmul(rows, rows, transpose_b=True) for rows in stacked]
            )
            weights = aggregator.weigh(gramian, task_losses, flags)
            return [
                tf.linalg.matvec(rows, weights, transpose_a=True)
                for rows in stacked
            ]
        jacobian = tf.concat(stacked, axis=1)  # [num_tasks, num_params]
        direction = aggregator(jacobian, task_losses, flags)
        return tf.split(direction, [rows.shape[1] for rows in stacked])


def _sum_of(gradient, term):
    if gradient is None or term is None:
        return term if gradient is None else gradient
    return gradient + tf.convert_to_tensor(term)
