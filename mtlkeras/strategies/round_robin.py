import keras
import numpy as np
from keras import ops

from mtlkeras.linalg.weighted_choice import choice_among
from mtlkeras.strategies.update_strategy import UpdateStrategy


@keras.saving.register_keras_serializable("mtlkeras")
class RoundRobin(UpdateStrategy):
    """One task per batch, cycling through the tasks.

    Batch number `i` trains task `i mod T` and nothing else, with that task's
    optimizer slots. A step costs one single-task step. Choose it when a batch
    belongs to one task anyway (one data set per task), or to spend the same
    compute per step as single-task training. Papers often call this
    "alternating", too; here `alternating` visits every task within each batch.

    If task `i mod T` has no label in the batch, one of the tasks that have
    takes its turn: the one, in a batch of one task, as `datasets.interleave`
    makes them. Where there are several it is drawn, from `i` alone. (The next
    one in the cycle would leave out tasks whose labels recur with a period.) A
    batch without any label does nothing.

    Args:
        task_slots: Boolean. `False` keeps one optimizer state in common.
            Defaults to `True`.
        task_learning_rates: Dict `{task: factor}`. Defaults to `None`.

    Example:

    >>> round_robin = RoundRobin()
    >>> round_robin.bind(("left", "right"))
    >>> [int(round_robin.select_group(step)) for step in range(3)]
    [0, 1, 0]
    """

    one_group_per_step = True

    def __init__(self, task_slots=True, task_learning_rates=None):
        super().__init__(task_slots, task_learning_rates)

    def task_groups(self, task_names):
        return tuple((name,) for name in task_names)

    def select_group(self, step):
        count = np.asarray(len(self._task_names), "int64")
        return ops.mod(ops.cast(step, "int64"), count)

    def select_labelled_group(self, step, labelled):
        uniform = [1.0] * len(self._task_names)
        return choice_among(labelled, self.select_group(step), uniform, 0, step)
