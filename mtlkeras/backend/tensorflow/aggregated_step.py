import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import all_flags, any_of
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.head_gradients import HeadGradients
from mtlkeras.backend.tensorflow.replicas import (
    every_replica,
    num_replicas,
    sum_over_replicas,
)
from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import is_loss_scaled


class AggregatedStep(GroupStep):
    """One forward pass, a backward pass per task and one update.

    The aggregator acts on the variables that several tasks of the group reach;
    every head follows the plain gradient of its own loss, and what the model
    adds to the loss (regularizers, `add_loss`) stays outside.

    Here the gradients are those of the parameters. They are kept as one matrix
    per variable, `[num_tasks, size]`: rules that need inner products only never
    see them put together. `FeatureStep` takes them at features.
    """

    live = None  # task -> whether it has labels and a finite gradient
    flags = None  # the same as a tensor, `[num_tasks]`

    def __init__(self, batch, index):
        super().__init__(batch, index)
        self.aggregator = self.model._multi_task.update.group_aggregators[index]
        self.loss_scaled = is_loss_scaled(self.model.optimizer, self.slot)
        self.variables = self.plan.group_variables(index)
        self.shared = self.plan.shared_in_group(index)
        shared = {id(v) for v in self.shared}
        self.own = {
            name: [
                v
                for v in self.variables
                if id(v) not in shared
                and name in self.plan.variable_tasks[id(v)]
            ]
            for name in self.names
        }

    def run(self, ran_before):
        """Returns whether the group was updated, a boolean."""
        with tf.GradientTape(persistent=True) as tape:
            self.forward(self.batch.any_labelled(self.names))
            weighted = self.weighted
            scaled = {name: self.scale(weighted[name]) for name in self.names}
            extra = None if self.extra is None else self.scale(self.extra)
        norms = self.batch.gradient_norms
        if norms is not None:
            norms.note_by_task(tape, self.names, self.unweighted)
        added = self.take_extra(tape, extra)
        gradients = self.take_gradients(tape, scaled, weighted)
        add_to(gradients, self.variables, added)
        return self.finish(gradients, ran_before)

    def finish(self, gradients, ran_before):
        return self.apply(
            [gradients.get(id(v)) for v in self.variables],
            self.variables,
            tf.reduce_any(self.flags),
            ran_before,
        )

    # -- gradients ------------------------------------------------------------

    def take_extra(self, tape, extra):
        """Gradients of what the model adds to the loss; notes if they are bad.

        It belongs to no task, so if it is not finite no task can be trained.
        """
        self.extra_is_finite = True
        if extra is None:
            return [None] * len(self.variables)
        gradients = tape.gradient(extra, self.variables)
        checked = [self.extra]
        if not self.loss_scaled:
            checked += [g for g in gradients if g is not None]
        self.extra_is_finite = all_finite(checked)
        return gradients

    def take_gradients(self, tape, scaled, weighted):
        """Dict from `id(variable)` to its gradient."""
        rows, gradients = {}, {}
        for name in self.names:
            taken = tape.gradient(scaled[name], self.shared + self.own[name])
            rows[name] = taken[: len(self.shared)]
            add_to(gradients, self.own[name], taken[len(self.shared) :])
        stacked = {
            id(v): self.stack(v, [rows[name][position] for name in self.names])
            for position, v in enumerate(self.shared)
            # All of them: the layers cut it off, as `stop_gradient` does.
            if any(rows[name][position] is not None for name in self.names)
        }
        gramian, squares = self.products(list(stacked.values()))
        self.note_live(weighted, gradients, squares)
        gradients.update(self.join(tape, stacked, gramian, weighted, scaled))
        return gradients

    def stack(self, variable, gradients):
        """The gradients of one variable, `[num_tasks, size]`."""
        size = int(tf.TensorShape(variable.shape).num_elements())
        flat = [
            tf.zeros([size], variable.dtype)
            if gradient is None
            else tf.reshape(tf.convert_to_tensor(gradient), [size])
            for gradient in gradients
        ]
        return sum_over_replicas(tf.stack(flat))

    def products(self, matrices):
        """Inner products of the tasks' gradients, and their squared lengths.

        Returns:
            Tuple of tensors of shapes `[num_tasks, num_tasks]` (`None` for
            rules that do not need it) and `[num_tasks]`, unscaled.
        """
        if not matrices:
            return None, tf.ones([len(self.names)])
        scale = self.scale(tf.ones([]))
        if self.aggregator.needs_rows:
            squares = tf.add_n(
                [sum_in_64(tf.reduce_sum(m * m, 1)) for m in matrices]
            )
            return None, squares / tf.cast(scale, squares.dtype) ** 2
        gramian = tf.add_n(
            # As a batch of one: that kernel is twice as fast on wide matrices.
            [
                sum_in_64(tf.matmul(m[None], m[None], transpose_b=True)[0])
                for m in matrices
            ]
        )
        # The rules shall know in which precision it was computed.
        gramian = gramian / tf.cast(scale, gramian.dtype) ** 2
        gramian = tf.cast(gramian, matrices[0].dtype)
        return gramian, tf.linalg.diag_part(gramian)

    def join(self, tape, stacked, gramian, weighted, scaled):
        """Directions of the shared variables, by `id(variable)`."""
        if not stacked:
            return {}
        shapes = {id(v): v.shape for v in self.shared}
        if self.aggregator.needs_rows:
            parts = self.parts_of_direction(list(stacked.values()), weighted)
        else:
            weights = self.weigh(gramian, weighted)
            if self.aggregator.memory == "low":
                return self.backward_once_more(tape, stacked, weights, scaled)
            parts = [
                tf.linalg.matvec(
                    self.without_dead(rows),
                    tf.cast(weights, rows.dtype),
                    transpose_a=True,
                )
                for rows in stacked.values()
            ]
        # `apply` adds up what the replicas give it.
        return {
            key: tf.reshape(part / num_replicas(), shapes[key])
            for key, part in zip(stacked, parts, strict=True)
        }

    def parts_of_direction(self, matrices, weighted):
        """The direction of a rule that needs all rows, part by part."""
        jacobian = tf.concat(matrices, 1)  # [num_tasks, num_params]
        scale = tf.cast(self.scale(tf.ones([])), jacobian.dtype)
        direction = self.aggregator(
            jacobian / scale, self.losses_of(weighted), self.flags_for_rule()
        )
        direction = self.overflown(direction * scale)
        sizes = [m.shape[1] or tf.shape(m)[1] for m in matrices]
        return tf.split(direction, tf.stack(sizes), num=len(sizes))

    def weigh(self, gramian, weighted):
        """The rule's `task_weights`, `[num_tasks]`."""
        weights = self.aggregator.weigh(
            gramian, self.losses_of(weighted), self.flags_for_rule()
        )
        return self.overflown(weights)

    def backward_once_more(self, tape, stacked, weights, scaled):
        """The weighted sum of gradients that were not kept."""
        variables = [v for v in self.shared if id(v) in stacked]
        weights = tf.cast(weights, next(iter(scaled.values())).dtype)
        weights = dict(zip(self.names, tf.unstack(weights), strict=True))

        def together():
            return as_tensors(
                tape.gradient(
                    list(scaled.values()),
                    variables,
                    output_gradients=[weights[name] for name in scaled],
                )
            )

        def one_by_one():
            # 0 times a gradient that is not finite would be NaN.
            total = [tf.zeros(v.shape, v.dtype) for v in variables]
            for name in self.names:
                taken = tape.gradient(
                    scaled[name], variables, output_gradients=weights[name]
                )
                total = [
                    t if g is None else t + self.if_live(name, g)
                    for t, g in zip(total, taken, strict=True)
                ]
            return total

        found = tf.cond(self.every_finite, together, one_by_one)
        # Each replica has its own part of the batch: `apply` adds them up.
        return dict(zip(map(id, variables), found, strict=True))

    # -- which tasks count ----------------------------------------------------

    def note_live(self, weighted, gradients, squares):
        """Settles which tasks have labels and a finite gradient.

        The heads of the others rest: their gradients are replaced by 0.
        """
        losses = tf.stack([weighted[name] for name in self.names])
        heads = HeadGradients(
            [
                {id(v): gradients[id(v)] for v in own if id(v) in gradients}
                for own in (self.own[name] for name in self.names)
            ]
        )
        labelled = all_flags([self.batch.labelled[n] for n in self.names])
        finite = tf.math.is_finite(losses)
        if not self.loss_scaled:
            finite &= heads.finite()
        finite = every_replica(finite)
        if self.aggregator.requires_positive_losses:
            # One without labels is 0 and no error.
            positive = self.losses_of(weighted) > 0
            finite &= positive if labelled is True else positive | ~labelled
        self.overflow = None
        if self.loss_scaled:
            # An overflow is the affair of the optimizer, which has to see it.
            self.overflow = ~tf.reduce_all(tf.math.is_finite(squares) | ~finite)
        else:
            finite &= tf.math.is_finite(squares)
        finite &= self.extra_is_finite
        self.every_finite = tf.reduce_all(finite)
        self.batch.finite.update(self.by_task(finite))
        self.flags = finite if labelled is True else finite & labelled
        self.live = self.by_task(self.flags)
        self.batch.ran.update(self.live)
        gradients.update(heads.where(self.flags))

    def by_task(self, flags):
        return dict(zip(self.names, tf.unstack(flags), strict=True))

    def labelled_in(self, index, tasks):
        # A task whose gradient is not finite is as one without labels.
        if index == self.index and self.live is not None:
            return any_of([self.live[n] for n in self.names if n in tasks])
        return super().labelled_in(index, tasks)

    def flags_for_rule(self):
        """Without an overflown batch, which is not to get into its state."""
        if self.overflow is None:
            return self.flags
        return self.flags & ~self.overflow

    def overflown(self, tensor):
        if self.overflow is None:
            return tensor
        nan = tf.constant(float("nan"), tensor.dtype)
        return tf.where(self.overflow, nan, tensor)

    def if_live(self, name, gradient):
        gradient = tf.convert_to_tensor(gradient)
        return tf.where(self.live[name], gradient, tf.zeros_like(gradient))

    def without_dead(self, rows):
        """Rows that weights of 0 take out even if they are not finite."""
        live = self.flags[:, None]
        return tf.cond(
            self.every_finite,
            lambda: rows,
            lambda: tf.where(live, rows, tf.zeros_like(rows)),
        )

    # -- losses ---------------------------------------------------------------

    def losses_of(self, weighted):
        losses = tf.stack([weighted[name] for name in self.names])
        return sum_over_replicas(losses)


def sum_in_64(tensor):
    return tf.cast(tensor, tf.float64)


def as_tensors(gradients):
    return [tf.convert_to_tensor(g) for g in gradients]


def add_to(gradients, variables, terms):
    """Adds gradients to those in a dict from `id(variable)`."""
    for v, term in zip(variables, terms, strict=True):
        if term is None:
            continue
        before = gradients.get(id(v))
        term = tf.convert_to_tensor(term)
        gradients[id(v)] = term if before is None else before + term
