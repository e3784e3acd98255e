import keras
import numpy as np
from keras import ops

from mtlkeras.linalg.counter_hash import random_permutation
from mtlkeras.strategies.update_strategy import UpdateStrategy, check_seed


@keras.saving.register_keras_serializable("mtlkeras")
class RandomGroups(UpdateStrategy):
    """A random balanced partition of the tasks; its groups update in turn.

    The tasks are permuted at random and dealt out to `num_groups` groups whose
    sizes differ by at most one. A batch costs `num_groups` steps, whatever the
    number of tasks: the way to afford alternating updates with many tasks.

    With `resample="never"` the partition is drawn once, as in the authors'
    code, and each group has optimizer slots for the shared variables and its
    own heads. When groups are drawn anew (`"epoch"`, `"step"`; our extension),
    the shared variables' slots belong to the group's position and each head
    keeps slots of its own; nothing is retraced. A resampling step evaluates
    all heads in every group's sub-step, since membership is only known inside
    the graph.

    The authors give the group size `s` and leave the remainder to the last
    group; here the number of groups is given and sizes are balanced. Their
    grouping is not reproducible from the seed; this one is, and it is the same
    with and without XLA.

    Args:
        num_groups: Integer from 1 to the number of tasks. Defaults to `2`.
        resample: `"never"`, `"epoch"` or `"step"`. Defaults to `"never"`.
        task_slots: Boolean. `False` keeps one optimizer state in common.
            Defaults to `True`.
        seed: Integer or `None`. Defaults to `None` (drawn, and then saved).
        task_learning_rates: Dict `{task: factor}`; tasks that share slots need
            equal values. Defaults to `None`.

    Example:

    >>> groups = RandomGroups(2, seed=0).task_groups(("a", "b", "c", "d"))
    >>> sorted(len(group) for group in groups)
    [2, 2]

    References:
        - [Pascal et al., 2021](https://arxiv.org/abs/2109.11678)
    """

    def __init__(
        self,
        num_groups=2,
        resample="never",
        task_slots=True,
        seed=None,
        task_learning_rates=None,
    ):
        super().__init__(task_slots, task_learning_rates)
        if (
            isinstance(num_groups, bool)
            or not isinstance(num_groups, int)
            or num_groups < 1
        ):
            raise ValueError(
                "Argument `num_groups` must be an integer of at least 1. "
                f"Received: num_groups={num_groups!r}"
            )
        if resample not in ("never", "epoch", "step"):
            raise ValueError(
                "Argument `resample` must be 'never', 'epoch' or 'step'. "
                f"Received: resample={resample!r}"
            )
        self.num_groups = num_groups
        self.resample = resample
        self.regroups = resample
        self.seed = check_seed(seed)

    def task_groups(self, task_names):
        if self.num_groups > len(task_names):
            raise ValueError(
                "Argument `num_groups` must not exceed the number of tasks "
                f"({len(task_names)}: {list(task_names)}). Received: "
                f"num_groups={self.num_groups}"
            )
        assigned = ops.convert_to_numpy(self._assign(0, len(task_names)))
        return tuple(
            tuple(
                name
                for name, group in zip(task_names, assigned, strict=True)
                if group == index
            )
            for index in range(self.num_groups)
        )

    def assign_groups(self, draw):
        return self._assign(draw, len(self._task_names))

    def _assign(self, draw, num_tasks):
        # rank of each task in the random order, dealt out round robin
        order = random_permutation(self.seed, draw, num_tasks)
        rank = ops.cast(ops.argsort(order), "int64")
        return ops.mod(rank, np.asarray(self.num_groups, "int64"))

    def get_config(self):
        return {
            "num_groups": self.num_groups,
            "resample": self.resample,
            **super().get_config(),
            "seed": self.seed,
        }
