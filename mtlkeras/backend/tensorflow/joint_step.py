import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import both
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.replicas import (
    every_replica,
    exchanges,
    update_if,
)
from mtlkeras.backend.tensorflow.state import is_loss_scaled, updated_state


def joint_step(batch):
    """One update of the weighted sum of all losses: Keras's own step.

    Beyond Keras, an update with a non-finite loss or gradient is left out.
    """
    model, tasks = batch.model, batch.tasks
    state = [(v, tf.identity(v.value)) for v in updated_state(model)]
    with tf.GradientTape() as tape:
        y_pred = model._run(model, batch.x, training=True)
        loss = batch.compute_total(y_pred, training=True)
        # Another replica goes on with its own from here.
        values = dict(tasks.values)
        scaled = model.optimizer.scale_loss(loss)
    variables = model.trainable_weights
    gradients = tape.gradient(scaled, variables) if variables else []
    checked = [loss]
    # Under loss scaling an overflow is the optimizer's own affair.
    if not is_loss_scaled(model.optimizer):
        checked += [g for g in gradients if g is not None]
    finite = all_finite(checked)

    def update():
        model.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def bad_tasks():
        # Behind finite losses any task's gradient may be the bad one.
        losses = tf.stack(list(batch.losses.values()))
        bad = ~every_replica(tf.math.is_finite(losses))
        return tf.where(tf.reduce_any(bad), bad, tf.ones_like(bad))

    def leave_out():
        for variable, before in state:
            variable.assign(before)
        batch.count_skipped(bad_tasks())

    batch.predictions = tasks.split(y_pred, "y_pred")
    for name in tasks.names:
        batch.losses[name] = values.get(name, loss)
        batch.ran[name] = both(batch.labelled[name], finite)
    if variables and not exchanges():
        tf.cond(finite, update, leave_out)
    elif variables:
        update_if(finite, update, variables + model.optimizer.variables)
        for variable, before in state:
            variable.assign(tf.where(finite, variable.value, before))
        batch.count_skipped(bad_tasks() & ~finite)
    batch.extra = [loss - batch.group_loss(batch.losses)]
    batch.track(loss, finite)
