import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import as_counts, both, negated
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.state import (
    ForwardScope,
    first_of,
    is_loss_scaled,
)
from mtlkeras.optimizers.per_task_optimizer import PerTaskOptimizer


def sequential_step(batch):
    """Every group in turn, each from the weights that the last one left."""
    ran = []
    for index in range(len(batch.model._multi_task.plan.groups)):
        ran.append(GroupStep(batch, index).run(ran))
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
        with tf.GradientTape() as tape:
            losses, loss = self.forward(self.batch.any_labelled(self.names))
            scaled = self.model.optimizer.scale_loss(loss, self.slot)
        variables = self.plan.group_variables(self.index)
        gradients = tape.gradient(scaled, variables)
        return self.update(gradients, losses, loss, ran_before)

    def forward(self, labelled):
        """The group's task losses and its total, under the caller's tape."""
        batch = self.batch
        layers = [
            (layer, groups)
            for layer, groups in self.plan.layer_groups
            if self.index in groups
        ]
        self.scope = ForwardScope(layers, self.plan.layer_users)
        with self.scope:
            predictions = self.model._forward(self.names, batch.x)
            losses = {
                name: batch.labels.loss(name, predictions[name])
                for name in self.names
            }
            added = self.scope.added_losses()
        batch.losses.update(losses)
        batch.predictions.update(predictions)
        loss = batch.group_loss(losses)
        extra = self.extra = self.extra_loss(added)
        if extra is not None:
            batch.extra.append(
                tf.where(labelled, extra, tf.zeros_like(extra))
                if labelled is not True
                else extra
            )
            loss = loss + tf.cast(extra, loss.dtype)
        return losses, loss

    def extra_loss(self, added):
        """The group's share of `add_loss` terms and regularizers, or `None`."""
        terms = [self.share(groups, loss) for groups, loss in added]
        for variable in self.plan.group_variables(self.index):
            if variable.regularizer is not None:
                groups = self.plan.variable_groups[id(variable)]
                value = variable.regularizer(variable)
                terms.append(self.share(groups, value))
        return tf.add_n(terms) if terms else None

    def share(self, groups, value):
        """Equal shares for the groups that have labels in this batch."""
        flags = [self.batch.any_labelled(self.plan.groups[k]) for k in groups]
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

        def commit():
            if not isinstance(optimizer, PerTaskOptimizer):
                optimizer.apply_gradients(pairs)
            elif pairs:
                optimizer.apply_slot(
                    self.slot,
                    [g for g, _ in pairs],
                    [v for _, v in pairs],
                    first_update=self.first_update(),
                    resting=self.resting(),
                )
            self.scope.commit(
                lambda groups, tasks: self.writes(groups, tasks, ran_before)
            )

        tf.cond(live, commit, lambda: None)
        return live

    def writes(self, groups, tasks, ran_before):
        """Whether the state of a layer with these users is to be written."""
        if self.index not in groups:
            return False
        own = [name for name in self.names if name in tasks]
        return both(
            self.batch.any_labelled(own),
            first_of(groups, self.index, ran_before),
        )

    def first_update(self):
        """Whether an update of a variable is its first in the batch."""
        due = {}

        def is_first(variable):
            groups = self.plan.variable_groups[id(variable)]
            if len(groups) == 1:
                return True
            if groups not in due:
                optimizer = self.model.optimizer
                due[groups] = optimizer.decay_is_due(variable)
            return due[groups]

        return is_first

    def note(self, losses, finite):
        """Which of the group's tasks were finite, and which ran."""
        batch = self.batch
        each = {name: tf.math.is_finite(losses[name]) for name in self.names}
        if len(self.names) > 1:
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
        """Variables none of whose tasks is labelled in a group that runs.

        Returns:
            List of `(rests, variables)` for `PerTaskOptimizer.apply_slot`.
        """
        by_users = {}
        for i, variable in enumerate(self.plan.structure.variables):
            users = self.plan.structure.users(i)
            users = tuple(name for name in self.names if name in users)
            if users and users != self.names:
                by_users.setdefault(users, []).append(variable)
        found = []
        for users, variables in by_users.items():
            labelled = self.labelled_in_group(users)
            if labelled is not True:
                found.append((negated(labelled), variables))
        return found

    def labelled_in_group(self, names):
        return self.batch.any_labelled(names)
