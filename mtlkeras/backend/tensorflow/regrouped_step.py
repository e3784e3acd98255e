import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import both
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.replicas import (
    every_replica,
    num_replicas,
    update_if,
)
from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import (
    ForwardScope,
    is_loss_scaled,
)


def regrouped_step(batch):
    """Groups in turn whose members are drawn inside the graph.

    A group's sub-step computes every head and lets only its members count; the
    shared variables are updated with the slots of the group's position, each
    head with slots of its own. In subclassed models, whose heads and trunk
    cannot be told apart, a head whose own derivative is NaN even for a gradient
    of 0 spoils every group's backward pass; those groups are skipped then.
    """
    model = batch.model
    plan, optimizer = model._multi_task.plan, model.optimizer
    strategy = model._multi_task.strategy
    draw = (
        optimizer.iterations if strategy.regroups == "step" else optimizer.draw
    )
    assigned = strategy.assign_groups(draw)
    head_gradients = {}
    for index in range(len(plan.groups)):
        RegroupedStep(batch, index, assigned).run(head_gradients)
    for name, slot in plan.head_slots.items():
        update_head(batch, name, slot, head_gradients, batch.ran[name])
    optimizer.finish_batch()
    batch.track()


def update_head(batch, name, slot, head_gradients, ran):
    """Updates a task's own variables with their slots, where it ran."""
    pairs = [
        (head_gradients[id(v)], v)
        for v in batch.model._multi_task.plan.structure.task_variables(name)
        if id(v) in head_gradients
    ]
    if not pairs:
        return

    def update():
        optimizer = batch.model.optimizer
        # A head's own clone may scale the loss by another factor.
        scale = optimizer.scale_loss(tf.ones([]), slot)
        optimizer.apply_slot(
            slot,
            [g * tf.cast(scale, g.dtype) for g, _ in pairs],
            [v for _, v in pairs],
            first_update=lambda variable: True,
        )

    clone = batch.model.optimizer.optimizers[slot]
    update_if(ran, update, [v for _, v in pairs] + clone.variables)


class RegroupedStep(GroupStep):
    """A group position whose members are known in the graph only.

    Args:
        batch: The `Batch`.
        index: The group's index, in a loop of the graph a tensor.
        assigned: Group index of every task, `[num_tasks]`.
    """

    def __init__(self, batch, index, assigned):
        # All positions have the same names.
        super().__init__(batch, index if isinstance(index, int) else 0)
        self.index = index
        self.assigned = assigned
        self.members = tf.equal(assigned, index)
        self.member = dict(
            zip(self.names, tf.unstack(self.members), strict=True)
        )
        self.labelled = as_tensor(batch.labelled, self.names)

    def run(self, head_gradients):
        """Updates shared variables; returns whether the group ran.

        Args:
            head_gradients: Dict from the ids of the heads' variables to
                gradients, to which those of the members are added.
        """
        batch, plan = self.batch, self.plan
        ran_before = tf.zeros_like(self.labelled)
        if batch.losses:
            ran_before = as_tensor(batch.ran, self.names)
        shared = plan.structure.shared_variables()
        heads = [
            v for n in self.names for v in plan.structure.task_variables(n)
        ]
        with tf.GradientTape() as tape:
            scope = ForwardScope(plan.structure.layer_tasks)
            with scope:
                predictions = self.predict()
                losses = {n: self.loss(n, predictions[n]) for n in self.names}
                added = scope.added_losses()
            counted = {
                name: tf.where(self.member[name], value, 0.0)
                for name, value in losses.items()
            }
            weighted = batch.loss_weights.weigh(counted, self.member)
            loss = batch.total(weighted)
            extra = self._extra(added)
            loss = loss + tf.cast(extra, loss.dtype)
            scaled = self.scale(loss)
        self.unweighted = losses
        norms = batch.gradient_norms
        copies = [] if norms is None else norms.flat_sources(self.names)
        gradients = tape.gradient(scaled, shared + heads + copies)
        if copies:
            self._note_norms(gradients[-len(copies) :], norms)
            del gradients[-len(copies) :]
        gradients[len(shared) :] = [
            self._of_member(v, g)
            for v, g in zip(heads, gradients[len(shared) :], strict=True)
        ]
        checked = [loss]
        if not is_loss_scaled(self.model.optimizer, self.slot):
            checked += [g for g in gradients if g is not None]
        finite = all_finite(checked)
        labelled = self.labelled_in(self.index, self.names)
        live = tf.logical_and(labelled, finite)
        batch.extra.append(tf.where(live, extra, 0.0))
        self._note_members(losses, predictions, finite, live)
        unscale = 1.0 / self.scale(tf.ones([]))
        for v, g in zip(heads, gradients[len(shared) :], strict=True):
            if g is not None:
                self._add(head_gradients, v, g, unscale)
        pairs = [
            (g, v)
            for g, v in zip(gradients, shared, strict=False)
            if g is not None
        ]
        self.scope = scope
        self.update_shared(pairs, live, ran_before)
        return live

    def update_shared(self, pairs, live, ran_before):
        """Updates shared variables and the state of all layers, if live."""
        optimizer = self.model.optimizer

        def commit():
            self.apply_slot(self.slot, pairs)
            self.scope.commit(lambda tasks: self.is_first(tasks, ran_before))

        changed = [v for _, v in pairs] + self.scope.variables
        update_if(live, commit, changed + optimizer.variables)

    def apply_slot(self, slot, pairs):
        if pairs:
            self.model.optimizer.apply_slot(
                slot,
                [g for g, _ in pairs],
                [v for _, v in pairs],
                first_update=self.first_update(),
                resting=self.resting(),
            )

    def predict(self):
        """All outputs; gradients pass from members alone to the trunk."""
        names, model, x = self.names, self.model, self.batch.x
        cut = self.plan.structure.cut_for(tuple((name,) for name in names))
        if cut is None:
            return model._forward(names, x)
        trunk, heads = cut
        boundary = keras.tree.flatten(model._run(trunk, x, training=True))
        predictions = {}
        for name, head in zip(names, heads, strict=True):
            inputs = [
                pass_gradient_if(self.member[name], boundary[i])
                for i in head.positions
            ]
            if self.batch.gradient_norms is not None:
                self.batch.gradient_norms.note_sources(
                    name, trunk, inputs, head.positions
                )
            predictions.update(model._run(head, inputs, training=True))
        return predictions

    def _note_norms(self, gradients, norms):
        """Of the members; a later position has the other tasks'."""
        before = dict(norms.squares)
        norms.note_flat(
            self.names,
            gradients,
            self.batch.loss_weights.latest,
            self.scale(tf.ones([])),
        )
        for name, square in before.items():
            norms.squares[name] = tf.where(
                self.member[name], norms.squares[name], square
            )

    def _of_member(self, variable, gradient):
        """A head's gradient, 0 unless its task is a member."""
        if gradient is None:
            return None
        # Selected: 0 times NaN is NaN.
        (owner,) = self.plan.variable_tasks[id(variable)]
        gradient = tf.convert_to_tensor(gradient)
        return tf.where(self.member[owner], gradient, tf.zeros_like(gradient))

    def loss(self, name, prediction):
        # A foreign task's bad label must not reach this group's gradient, not
        # even times 0.
        target = self.batch.labels.targets[name]
        member = self.member[name]
        target = tf.where(member, target, tf.zeros_like(target))
        return self.batch.labels.loss(name, prediction, target)

    def _extra(self, added):
        """Shared terms in equal shares; a head's own with its group."""
        terms = [self._own_or_share(names, value) for names, value in added]
        for i, v in enumerate(self.plan.structure.variables):
            if v.regularizer is not None:
                names = [
                    n for n in self.names if i in self.plan.structure.reach[n]
                ]
                terms.append(self._own_or_share(names, v.regularizer(v)))
        extra = tf.add_n(terms) if terms else tf.constant(0.0)
        return extra / num_replicas()

    def _own_or_share(self, names, value):
        value = tf.cast(value, tf.float32)
        if len(names) == 1:
            return tf.where(self.member[names[0]], value, 0.0)
        return self.share(names, value)

    def share(self, tasks, value):
        groups = tf.one_hot(
            self.assigned, len(self.plan.groups), dtype=value.dtype
        )
        groups *= tf.cast(self.labelled, value.dtype)[:, None]
        uses = tf.reduce_max(self.of_tasks(groups, tasks), axis=0)
        return value * uses[self.index] / tf.maximum(tf.reduce_sum(uses), 1.0)

    def _note_members(self, losses, predictions, finite, live):
        batch = self.batch
        first = not batch.losses
        found = every_replica(
            tf.math.is_finite(tf.stack([losses[n] for n in self.names]))
        )
        each = {
            name: is_finite | ~self.member[name]
            for name, is_finite in zip(
                self.names, tf.unstack(found), strict=True
            )
        }
        # Not finite behind finite losses: any of the members may be it.
        unclear = ~finite & tf.reduce_all(tf.stack(list(each.values())))
        for name in self.names:
            member = self.member[name]
            is_finite = each[name] & ~(unclear & member)
            ran = tf.logical_and(member, both(batch.labelled[name], live))
            if first:
                batch.losses[name] = losses[name]
                batch.predictions[name] = predictions[name]
                batch.finite[name], batch.ran[name] = is_finite, ran
                continue
            batch.losses[name] = tf.where(
                member, losses[name], batch.losses[name]
            )
            batch.predictions[name] = tf.where(
                member, predictions[name], batch.predictions[name]
            )
            batch.finite[name] = batch.finite[name] & is_finite
            batch.ran[name] = batch.ran[name] | ran

    def _add(self, head_gradients, variable, gradient, unscale):
        gradient = gradient * tf.cast(unscale, gradient.dtype)
        if id(variable) in head_gradients:
            gradient = head_gradients[id(variable)] + gradient
        head_gradients[id(variable)] = gradient

    def labelled_in(self, index, tasks):
        found = tf.equal(self.assigned, index) & self.labelled
        return tf.reduce_any(self.of_tasks(found, tasks))

    def is_first(self, tasks, ran_before):
        return self.labelled_in(self.index, tasks) & ~tf.reduce_any(
            self.of_tasks(ran_before, tasks)
        )

    def of_tasks(self, values, tasks):
        """The rows of some tasks."""
        indices = [i for i, name in enumerate(self.names) if name in tasks]
        return tf.gather(values, indices)

    def resting(self):
        """Shared variables that no labelled member of the position uses."""
        by_users = {}
        for v in self.plan.structure.shared_variables():
            users = self.plan.variable_tasks[id(v)]
            if users != self.names:
                by_users.setdefault(users, []).append(v)
        return [
            (tf.logical_not(self.labelled_in(self.index, users)), variables)
            for users, variables in by_users.items()
        ]


def as_tensor(flags, names):
    """Flags of tasks as one boolean tensor, `[num_tasks]`."""
    return tf.stack([tf.convert_to_tensor(flags[name]) for name in names])


def pass_gradient_if(condition, tensor):
    """The tensor; its gradient is 0 unless the condition holds."""

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), lambda g: tf.where(
            condition, g, tf.zeros_like(g)
        )

    output = identity(tensor)
    # Keras keeps masks on the tensors themselves; the losses need them.
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        output._keras_mask = mask
    return output
