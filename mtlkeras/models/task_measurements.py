import keras
import numpy as np


class TaskMeasurements:
    """What the training step measures for `TaskMonitor`.

    No part of the model's state: nothing of it is saved, and no update reads
    it.

    Args:
        names: Tuple of task names.
        groups: Tuple of tuples of task names.
        every: Integer, how many batches lie between two measurements.
        every_motion: Boolean. Whether motion is noted in every batch, as where
            a batch moves one group alone.

    Attributes:
        wait: Variable, how many batches to go to the next measurement.
        gramian: Variable `[num_tasks, num_tasks]`, inner products of the
            gradients of the batch measured last; NaN for tasks without labels.
        motion: Variable `[num_groups]`, sum of the squared lengths of the
            updates of shared variables so far.
    """

    def __init__(self, names, groups, every, every_motion):
        self.names = names
        self.groups = groups
        self.every = every
        self.every_motion = every_motion
        count = len(names)
        self.wait = self._add(np.zeros((), "int64"), "wait")
        self.gramian = self._add(np.full((count, count), np.nan), "gramian")
        self.motion = self._add(np.zeros(len(groups)), "motion")

    @staticmethod
    def _add(value, name):
        return keras.Variable(
            value, dtype=value.dtype.name, trainable=False, name=name
        )
