import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import both
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import (
    ForwardScope,
    first_of,
    is_loss_scaled,
)


def regrouped_step(batch):
    """Groups in turn whose members are drawn inside the graph.

    A group's sub-step computes every head and lets only its members count; the
    shared variables are updated with the slots of the group's position, each
    head with slots of its own. A head whose own derivative is NaN even for a
    gradient of 0 spoils every group's backward pass, not only its own group's;
    those groups are skipped then.
    """
    model = batch.model
    plan, optimizer = model._multi_task.plan, model.optimizer
    strategy = model._multi_task.strategy
    draw = (
        optimizer.iterations if strategy.regroups == "step" else optimizer.draw
    )
    assigned = strategy.assign_groups(draw)
    # How many groups have labels and so share what belongs to all of them.
    labelled = tf.stack(
        [tf.cast(batch.labelled[n], tf.bool) for n in batch.tasks.names]
    )
    sharers = tf.maximum(
        tf.add_n(
            [
                tf.cast(
                    tf.reduce_any(labelled & tf.equal(assigned, k)), "float32"
                )
                for k in range(len(plan.groups))
            ]
        ),
        1.0,
    )
    head_gradients, ran = {}, []
    for index in range(len(plan.groups)):
        step = RegroupedStep(batch, index, assigned, sharers)
        ran.append(step.run(ran, head_gradients))
    for name, slot in plan.head_slots.items():
        _update_head(batch, name, slot, head_gradients)
    optimizer.finish_batch()
    batch.track()


def _update_head(batch, name, slot, head_gradients):
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
        )

    tf.cond(batch.ran[name], update, lambda: None)


class RegroupedStep(GroupStep):
    """A group position whose members are known in the graph only."""

    def __init__(self, batch, index, assigned, sharers):
        super().__init__(batch, index)
        self.sharers = sharers
        position = tf.unstack(tf.equal(assigned, index))
        self.member = dict(zip(self.names, position, strict=True))

    def run(self, ran_before, head_gradients):
        batch, optimizer, plan = self.batch, self.model.optimizer, self.plan
        shared = plan.structure.shared_variables()
        heads = [
            v for n in self.names for v in plan.structure.task_variables(n)
        ]
        with tf.GradientTape() as tape:
            scope = ForwardScope(plan.structure.layer_tasks)
            with scope:
                predictions = self.model._forward(self.names, batch.x)
                losses = {n: self._loss(n, predictions[n]) for n in self.names}
                added = scope.added_losses()
            counted = {
                name: tf.where(self.member[name], value, 0.0)
                for name, value in losses.items()
            }
            loss = batch.group_loss(counted)
            extra = self._extra(added)
            loss = loss + tf.cast(extra, loss.dtype)
            scaled = optimizer.scale_loss(loss, self.slot)
        gradients = tape.gradient(scaled, shared + heads)
        checked = [loss]
        if not is_loss_scaled(optimizer, self.slot):
            checked += [g for g in gradients if g is not None]
        finite = all_finite(checked)
        labelled = tf.reduce_any(
            tf.stack(
                [
                    tf.logical_and(self.member[n], batch.labelled[n])
                    for n in self.names
                ]
            )
        )
        live = tf.logical_and(labelled, finite)
        batch.extra.append(tf.where(live, extra, 0.0))
        self._note_members(losses, predictions, finite, live)
        unscale = 1.0 / optimizer.scale_loss(tf.ones([]), self.slot)
        for v, g in zip(heads, gradients[len(shared) :], strict=True):
            if g is not None:
                self._add(head_gradients, v, g, unscale)
        pairs = [
            (g, v)
            for g, v in zip(gradients, shared, strict=False)
            if g is not None
        ]

        def commit():
            if pairs:
                optimizer.apply_slot(
                    self.slot,
                    [g for g, _ in pairs],
                    [v for _, v in pairs],
                    first_update=self.first_update(),
                    resting=self.resting_shared(),
                )
            scope.commit(lambda names, _: self._commits(names, ran_before))

        tf.cond(live, commit, lambda: None)
        return live

    def resting_shared(self):
        """As `resting`, for the variables that this sub-step updates."""
        shared = {id(v) for v in self.plan.structure.shared_variables()}
        return [
            (rests, [v for v in variables if id(v) in shared])
            for rests, variables in self.resting()
        ]

    def labelled_in_group(self, names):
        flags = [both(self.member[n], self.batch.labelled[n]) for n in names]
        return tf.reduce_any(tf.stack(flags))

    def _loss(self, name, prediction):
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
        return tf.add_n(terms) if terms else tf.constant(0.0)

    def _own_or_share(self, names, value):
        value = tf.cast(value, tf.float32)
        if len(names) == 1:
            return tf.where(self.member[names[0]], value, 0.0)
        return value / self.sharers

    def _note_members(self, losses, predictions, finite, live):
        batch, first = self.batch, self.index == 0
        each = {
            name: tf.math.is_finite(losses[name]) | ~self.member[name]
            for name in self.names
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
        gradient = tf.convert_to_tensor(gradient)
        gradient = gradient * tf.cast(unscale, gradient.dtype)
        # Selected: a group that was left out may hold NaN even for 0 weight.
        owner = next(
            name
            for name in self.names
            if any(
                v is variable for v in self.plan.structure.task_variables(name)
            )
        )
        gradient = tf.where(
            self.member[owner], gradient, tf.zeros_like(gradient)
        )
        if id(variable) in head_gradients:
            gradient = head_gradients[id(variable)] + gradient
        head_gradients[id(variable)] = gradient

    def _commits(self, names, ran_before):
        """Whether state of a layer that these tasks use is to be written."""
        if len(names) == 1:
            labelled = self.batch.labelled[names[0]]
            return both(self.member[names[0]], labelled)
        every = tuple(range(len(self.plan.groups)))
        return first_of(every, self.index, ran_before)
