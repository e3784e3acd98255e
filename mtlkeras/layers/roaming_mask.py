import math
import random

import keras
import numpy as np
from keras import ops

from mtlkeras.layers.running_task import task_of_call


@keras.saving.register_keras_serializable("mtlkeras")
class RoamingMask(keras.layers.Layer):
    """Lets every task use a subset of the units, which roams while training.

    ```
    y = M[task] x        M[task, unit] is 0 or 1
    ```

    Each task has `K = ceil(sharing_ratio S)` of the `S` units; where the
    subsets overlap, tasks share. Less sharing means less interference and less
    transfer; letting the subsets roam (`callbacks.MaximumRoaming`) makes every
    unit serve every task for a while. With that callback it is Maximum
    Roaming, without it task routing (fixed random masks).

    Choose it where tasks of one trunk harm each other and a T-fold cost of the
    trunk is affordable, in training and in prediction.

    Put it after the normalization of every convolution (before or after the
    activation is the same); `MultiTaskModel.with_roaming` does so for an
    existing model. A functional `MultiTaskModel` runs the trunk once per task
    and tells the layer which one it is; its masks are in the order of the
    model's outputs. `BatchNormalization` before it would mix the statistics of
    differently masked inputs: use `TaskBatchNormalization`.

    Args:
        num_tasks: Integer, the number of tasks (of outputs of the model).
        sharing_ratio: Float from `1 / num_tasks` to 1, the share of the units
            that a task uses. 1 is plain sharing. Defaults to `0.8` (the
            authors' scripts for CelebA and NYUv2).
        axis: Integer, the axis of the units. Defaults to `-1`.
        seed: Non-negative integer for the partition and for roaming. Layers
            with equal seeds draw alike. Defaults to `None` (drawn from the
            generator that `keras.utils.set_random_seed` seeds).
        **kwargs: As for `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor with `S` units along `axis`.
        task: Index of the task. Defaults to `None`: the one that the model
            runs.

    Example:

    >>> mask = RoamingMask(num_tasks=2, sharing_ratio=0.5, seed=0)
    >>> units = np.ones((1, 4))
    >>> both = [keras.ops.convert_to_numpy(mask(units, task=t)) for t in (0, 1)]
    >>> [int(y.sum()) for y in both]
    [2, 2]

    Attributes:
        mask: Variable `[num_tasks, S]` of zeros and ones.
        visited: Boolean variable `[num_tasks, S]`: where the mask is or was 1.
        updates: Variable, how often the mask was updated.

    Departures: `K = ceil(sharing_ratio S)` for every ratio; in the authors'
    code rounding makes it one more where `sharing_ratio S` is an integer and
    `1 - sharing_ratio` is not exact (9 of 10 units for 0.8).

    References:
        - [Pascal et al., 2021](https://arxiv.org/abs/2006.09762)
    """

    # A model runs the trunk once per task if a layer says so.
    depends_on_task = True

    def __init__(
        self, num_tasks, sharing_ratio=0.8, axis=-1, seed=None, **kwargs
    ):
        super().__init__(**kwargs)
        if not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(
                "Argument `num_tasks` must be a positive integer. Received: "
                f"num_tasks={num_tasks!r}"
            )
        if not 1 / num_tasks - 1e-9 <= sharing_ratio <= 1:
            raise ValueError(
                "Argument `sharing_ratio` must be from 1 / num_tasks "
                f"({1 / num_tasks:.4g} for {num_tasks} tasks), so that every "
                "unit can be used by a task, to 1. Received: "
                f"sharing_ratio={sharing_ratio!r}"
            )
        self.num_tasks = num_tasks
        self.sharing_ratio = sharing_ratio
        self.axis = axis
        self.seed = draw_seed() if seed is None else seed
        self.supports_masking = True

    def build(self, input_shape):
        units = input_shape[self.axis]
        if units is None:
            raise ValueError(
                f"The axis {self.axis} of the inputs of RoamingMask holds the "
                "units, so its size must be known. Received: input_shape="
                f"{tuple(input_shape)}"
            )
        shape = (self.num_tasks, units)
        self.num_units = units
        # The least integer that is not below, but for rounding.
        self.units_per_task = math.ceil(self.sharing_ratio * units - 1e-9)
        partition = self._initial_partition()
        self.mask = self._add("mask", shape, "float32", partition)
        self.visited = self._add("visited", shape, "bool", partition > 0)
        self.updates = self._add("updates", (), "int64", 0)
        self.last_step = self._add("last_step", (), "int64", 0)

    def _add(self, name, shape, dtype, value):
        return self.add_weight(
            shape=shape,
            dtype=dtype,
            initializer=lambda shape, dtype: ops.cast(value, dtype),
            trainable=False,
            name=name,
        )

    def _initial_partition(self):
        """Zeros and ones, `[num_tasks, units]`: every unit has a task."""
        partition = np.zeros((self.num_tasks, self.num_units), "float32")
        units = np.arange(self.num_units)
        partition[units % self.num_tasks, units] = 1
        generator = np.random.default_rng([self.seed, 0])
        for row in partition:
            free = np.flatnonzero(row == 0)
            count = max(self.units_per_task - int(row.sum()), 0)
            row[generator.choice(free, count, replace=False)] = 1
        return partition

    def call(self, inputs, task=None):
        if isinstance(inputs, keras.KerasTensor):
            return inputs
        task = task_of_call(self, task, self.num_tasks)
        mask = ops.cast(self.mask[task], inputs.dtype)
        shape = [1] * len(inputs.shape)
        shape[self.axis] = self.num_units
        return inputs * ops.reshape(mask, shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs, task=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    # -- roaming --------------------------------------------------------------

    @property
    def max_updates(self):
        """After how many updates every unit was visited by every task."""
        return self.num_units - self.units_per_task

    def roam(self, update_ratio=1.0):
        """One update: each task takes up one unit and gives up another.

        The unit taken up is one that the task never had, so a unit that was
        given up never comes back. Outside of the training step, whose graph
        reads the mask; it is not traced again.

        Args:
            update_ratio: Float from 0 to 1. The mask is final after this share
                of `max_updates`. Defaults to `1.0`.

        Returns:
            Whether there was anything left to do.
        """
        mask = np.array(ops.convert_to_numpy(self.mask))
        visited = np.array(ops.convert_to_numpy(self.visited))
        updates = int(ops.convert_to_numpy(self.updates))
        limit = round(update_ratio * self.max_updates)
        if updates >= limit or visited.all(1).any():
            return False
        generator = np.random.default_rng([self.seed, updates + 1])
        for row, seen in zip(mask, visited, strict=True):
            taken = generator.choice(np.flatnonzero(~seen))
            given_up = generator.choice(np.flatnonzero(row))
            row[taken], row[given_up] = 1, 0
        self.mask.assign(mask)
        self.visited.assign(visited | (mask > 0))
        self.updates.assign(updates + 1)
        return True

    def get_config(self):
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "sharing_ratio": self.sharing_ratio,
            "axis": self.axis,
            "seed": self.seed,
        }


def draw_seed():
    # From the generator that `keras.utils.set_random_seed` seeds.
    return random.randint(0, 2**31 - 1)
