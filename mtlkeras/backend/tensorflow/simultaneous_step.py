import tensorflow as tf

from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import ForwardScope


def simultaneous_step(batch):
    """All gradients at the same weights, then every group's own update."""
    model = batch.model
    plan = model._multi_task.plan
    steps = [GroupStep(batch, k) for k in range(len(plan.groups))]
    with tf.GradientTape(persistent=True) as tape:
        names = tuple(name for group in plan.groups for name in group)
        scope = ForwardScope(plan.structure.layer_tasks)
        with scope:
            if batch.gradient_norms is None:
                predictions = model._forward(names, batch.x)
            else:
                predictions = batch.gradient_norms.predict(names)
            losses = {
                name: batch.labels.loss(name, predictions[name])
                for name in names
            }
            added = scope.added_losses()
        weighted = batch.loss_weights.weigh(losses)
        totals = [_total(step, weighted, added) for step in steps]
        scaled = [
            model.optimizer.scale_loss(total, step.slot)
            for total, step in zip(totals, steps, strict=True)
        ]
    batch.predictions, batch.losses = predictions, losses
    if batch.gradient_norms is not None:
        batch.gradient_norms.note_by_task(tape, names, losses)
    gradients = [
        tape.gradient(value, plan.group_variables(step.index))
        for value, step in zip(scaled, steps, strict=True)
    ]
    del tape
    ran = []
    for step, total, taken in zip(steps, totals, gradients, strict=True):
        step.scope = scope
        own = {name: losses[name] for name in step.names}
        ran.append(step.update(taken, own, total, ran))
    model.optimizer.finish_batch()
    batch.track()


def _total(step, weighted, added):
    """The loss whose gradient is the group's."""
    batch = step.batch
    total = batch.total({name: weighted[name] for name in step.names})
    own = [
        (tasks, value)
        for tasks, value in added
        if any(name in tasks for name in step.names)
    ]
    extra = step.extra_loss(own)
    if extra is None:
        return total
    batch.extra.append(
        tf.where(batch.any_labelled(step.names), extra, tf.zeros_like(extra))
    )
    return total + tf.cast(extra, total.dtype)
