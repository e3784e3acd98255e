import tensorflow as tf

from mtlkeras.backend.tensorflow.finite import all_finite
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

    def leave_out():
        for variable, before in state:
            variable.assign(before)

    if variables:
        tf.cond(finite, update, leave_out)
    batch.predictions = tasks.split(y_pred, "y_pred")
    for name in tasks.names:
        batch.losses[name] = tasks.values.get(name, loss)
        batch.finite[name] = tf.logical_or(
            finite, tf.math.is_finite(batch.losses[name])
        )
    # A gradient that overflows behind finite losses counts for every task.
    suspect = tf.reduce_all(tf.stack(list(batch.finite.values())))
    for name in tasks.names:
        batch.finite[name] = tf.logical_and(
            batch.finite[name], tf.logical_or(finite, ~suspect)
        )
        batch.ran[name] = (
            finite
            if batch.labelled[name] is True
            else tf.logical_and(batch.labelled[name], finite)
        )
    batch.extra = [loss - batch.group_loss(batch.losses)]
    batch.track(loss, finite)
