import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import (
    any_of,
    as_counts,
    both,
    negated,
)
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.fused import fused_updates
from mtlkeras.backend.tensorflow.replicas import (
    every_replica,
    num_replicas,
    update_if,
)
from mtlkeras.backend.tensorflow.state import (
    ForwardScope,
    is_loss_scaled,
)
from mtlkeras.optimizers.per_task_optimizer import (
    PerTaskOptimizer,
    innermost,
)
from mtlkeras.optimizers.variable_state import at_rest


def sequential_step(batch, step=None):
    """Every group in turn, each from the weights that the last one left.

    Args:
        batch: The `Batch`.
        step: The class of the groups' steps. Defaults to `GroupStep`.
    """
    ran = []
    for index in range(len(batch.model._multi_task.plan.groups)):
        ran.append((step or GroupStep)(batch, index).run(ran))
    if isinstance(batch.model.optimizer, PerTaskOptimizer):
        batch.model.optimizer.finish_batch()
    batch.track()


class GroupStep:
    """Forward pass, gradients and update of one group."""

    def __init__(self, batch, index):
        self.batch = batch
        self.index = index
        self.model = batch.model
        self.plan = batch.model._multi_task.plan
        self.names = self.plan.groups[index]
        self.slot = self.plan.group_slots[index]

    def run(self, ran_before):
        """Returns whether the group was updated, a boolean."""
        norms = self.batch.gradient_norms
        by_task = norms is not None and not norms.by_copies
        with tf.GradientTape(persistent=by_task) as tape:
            losses, loss = self.forward(self.batch.any_labelled(self.names))
            scaled = self.scale(loss)
        variables = self.plan.group_variables(self.index)
        if by_task:
            norms.note_by_task(tape, self.names, self.unweighted)
        copies = [] if norms is None else norms.flat_sources(self.names)
        gradients = tape.gradient(scaled, variables + copies)
        del tape
        if copies:
            norms.note_flat(
                self.names,
                gradients[len(variables) :],
                self.batch.loss_weights.latest,
                self.scale(tf.ones([])),
            )
        gradients = gradients[: len(variables)]
        return self.update(gradients, losses, loss, ran_before)

    def forward(self, labelled):
        """The group's task losses and its total, under the caller's tape."""
        batch = self.batch
        layers = [
            (layer, tasks)
            for layer, tasks in self.plan.structure.layer_tasks
            if any(name in tasks for name in self.names)
        ]
        self.scope = ForwardScope(layers)
        with self.scope:
            predictions = self.predict()
            losses = {
                name: batch.labels.loss(name, predictions[name])
                for name in self.names
            }
            added = self.scope.added_losses()
        batch.losses.update(losses)
        batch.predictions.update(predictions)
        self.weighted = batch.loss_weights.weigh(losses)
        self.unweighted = losses
        loss = batch.total(self.weighted)
        extra = self.extra = self.extra_loss(added)
        if extra is not None:
            batch.extra.append(
                tf.where(labelled, extra, tf.zeros_like(extra))
                if labelled is not True
                else extra
            )
            loss = loss + tf.cast(extra, loss.dtype)
        return losses, loss

    def scale(self, loss):
        optimizer = self.model.optimizer
        if isinstance(optimizer, PerTaskOptimizer):
            return optimizer.scale_loss(loss, self.slot)
        return optimizer.scale_loss(loss)

    def predict(self):
        """Dict from task to its output, for the group's tasks."""
        if self.batch.gradient_norms is not None:
            return self.batch.gradient_norms.predict(self.names)
        return self.model._forward(self.names, self.batch.x)

    def extra_loss(self, added):
        """The group's share of `add_loss` terms and regularizers, or `None`."""
        terms = [self.share(tasks, loss) for tasks, loss in added]
        for variable in self.plan.group_variables(self.index):
            if variable.regularizer is not None:
                tasks = self.plan.variable_tasks[id(variable)]
                value = variable.regularizer(variable)
                terms.append(self.share(tasks, value))
        return tf.add_n(terms) / num_replicas() if terms else None

    def labelled_in(self, index, tasks):
        """Whether group `index` has labels for one of the tasks."""
        names = [n for n in self.plan.groups[index] if n in tasks]
        return self.batch.any_labelled(names)

    def is_first(self, tasks, ran_before):
        """Whether this sub-step, if it runs, is the first for any of the tasks.

        It is for state that only they use: a head rests without own labels.
        """
        before = [
            both(ran, self.labelled_in(k, tasks))
            for k, ran in enumerate(ran_before[: self.index])
        ]
        return both(
            self.labelled_in(self.index, tasks), negated(any_of(before))
        )

    def share(self, tasks, value):
        """Equal shares for the groups with labels for one of the tasks."""
        groups = [
            k
            for k, group in enumerate(self.plan.groups)
            if any(name in tasks for name in group)
        ]
        flags = [self.labelled_in(k, tasks) for k in groups]
        if all(flag is True for flag in flags):
            return value / len(flags) if len(flags) > 1 else value
        count = tf.maximum(tf.reduce_sum(as_counts(flags)), 1)
        return value / tf.cast(count, value.dtype)

    def update(self, gradients, losses, loss, ran_before):
        """Applies the group's gradients if it has labels and all is finite.

        Returns whether it did, a boolean tensor.
        """
        batch = self.batch
        checked = [loss]
        if not is_loss_scaled(self.model.optimizer, self.slot):
            checked += [g for g in gradients if g is not None]
        finite = all_finite(checked)
        self.note(losses, finite)
        return self.apply(
            gradients,
            self.plan.group_variables(self.index),
            both(batch.any_labelled(self.names), finite),
            ran_before,
        )

    def apply(self, gradients, variables, live, ran_before):
        """Updates weights and state where `live`; returns `live`."""
        optimizer = self.model.optimizer
        # A path that a layer cuts (stop_gradient) has no gradient.
        pairs = [
            (g, v)
            for g, v in zip(gradients, variables, strict=True)
            if g is not None
        ]

        def apply_slot():
            optimizer.apply_slot(
                self.slot,
                [g for g, _ in pairs],
                [v for _, v in pairs],
                first_update=self.first_update(),
                resting=self.resting(),
            )

        def commit():
            if not isinstance(optimizer, PerTaskOptimizer):
                with (
                    fused_updates(innermost(optimizer)),
                    at_rest(innermost(optimizer), self.resting(), update_if),
                ):
                    optimizer.apply_gradients(pairs)
            elif pairs:
                self.batch.watched(self.index, apply_slot)
            self.scope.commit(lambda tasks: self.is_first(tasks, ran_before))

        changed = variables + self.scope.variables
        update_if(live, commit, changed + optimizer.variables)
        return live

    def first_update(self):
        """Whether an update of a variable is its first in the batch."""
        due = {}

        def is_first(variable):
            groups = self.plan.variable_groups[id(variable)]
            if len(groups) == 1:
                return True
            tasks = self.plan.variable_tasks[id(variable)]
            if tasks not in due:
                due[tasks] = both(
                    self.labelled_in(self.index, tasks),
                    self.model.optimizer.decay_is_due(variable),
                )
            return due[tasks]

        return is_first

    def note(self, losses, finite):
        """Which of the group's tasks were finite, and which ran."""
        batch = self.batch
        if len(self.names) > 1:
            each = every_replica(
                tf.math.is_finite(tf.stack([losses[n] for n in self.names]))
            )
            each = dict(zip(self.names, tf.unstack(each), strict=True))
            # Not finite behind finite losses: any of its tasks may be it.
            unclear = tf.logical_and(
                ~finite, tf.reduce_all(tf.stack(list(each.values())))
            )
            for name in self.names:
                batch.finite[name] = tf.logical_and(each[name], ~unclear)
        else:
            batch.finite[self.names[0]] = finite
        for name in self.names:
            batch.ran[name] = both(batch.labelled[name], finite)

    def resting(self):
        """What only unlabelled tasks use in a group that has labelled ones."""
        by_users = {}
        for v in self.plan.group_variables(self.index):
            users = self.plan.variable_tasks[id(v)]
            users = tuple(name for name in self.names if name in users)
            by_users.setdefault(users, []).append(v)
        return [
            (negated(self.labelled_in(self.index, users)), variables)
            for users, variables in by_users.items()
            if users != self.names
            and self.labelled_in(self.index, users) is not True
        ]
