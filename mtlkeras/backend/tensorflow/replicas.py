"""What the replicas of a `tf.distribute` strategy have to agree on.

Each replica sees its part of the batch. Whether a task has labels or a finite
gradient is a matter of the whole batch: were the replicas to differ, one would
wait for an update that the other leaves out.
"""

import tensorflow as tf

MIRRORED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
)


def num_replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def exchanges():
    """Whether updates exchange gradients, which no branch or loop can hold.

    With a mirrored strategy they do, be it of a single replica.
    """
    return isinstance(tf.distribute.get_strategy(), MIRRORED)


def sum_over_replicas(tensor):
    """The sum of the replicas' values; the tensor itself on one device."""
    if num_replicas() == 1:
        return tensor
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def any_replica(flags):
    """Where any replica's flag holds; boolean tensors of any shape."""
    if num_replicas() == 1:
        return flags
    return sum_over_replicas(tf.cast(flags, tf.int32)) > 0


def every_replica(flags):
    """Where every replica's flag holds; boolean tensors of any shape."""
    if num_replicas() == 1:
        return flags
    return ~any_replica(~flags)


def update_if(condition, update, variables):
    """Runs an update where the condition holds.

    Where an update exchanges gradients, no branch can hold it; so it always
    runs, and values are selected afterwards.

    Args:
        condition: Boolean tensor, equal on all replicas.
        update: Function without arguments.
        variables: All variables that the update may change.
    """
    if not exchanges():
        tf.cond(condition, update, lambda: None)
        return
    before = [tf.identity(v.value) for v in variables]
    update()
    for variable, value in zip(variables, before, strict=True):
        variable.assign(tf.where(condition, variable.value, value))
