import keras

from mtlkeras.linalg.counter_hash import random_permutation
from mtlkeras.strategies.update_strategy import (
    UpdateStrategy,
    check_flag,
    check_seed,
)


@keras.saving.register_keras_serializable("mtlkeras")
class Grouped(UpdateStrategy):
    """The given task groups in turn, each with its own optimizer slots.

    As `Alternating`, with groups of tasks in place of single tasks; the loss
    of a group is the sum of its tasks' (weighted) losses. One group that holds
    all tasks is `joint`, groups of one task are `alternating`. Choose it when
    you know which tasks help one another, or to pay for `K` steps per batch
    instead of `T`.

    Args:
        groups: List of lists of task names that holds every task exactly once.
        task_slots: Boolean. `False` keeps one optimizer state for all groups.
            Defaults to `True`.
        shuffle: Boolean. Draws the order of the groups for each batch.
            Defaults to `False`.
        seed: Integer or `None`. Seed of the order. Defaults to `None`.
        task_learning_rates: Dict `{task: factor}`. Multiplies the update of
            that task's group; tasks of one group need equal values. Defaults
            to `None`.

    Raises:
        ValueError: If a task is named twice, missing or unknown.

    Example:

    >>> grouped = Grouped([["depth", "normals"], ["segmentation"]])
    >>> grouped.task_groups(("segmentation", "depth", "normals"))
    (('depth', 'normals'), ('segmentation',))

    References:
        - [Pascal et al., 2021](https://arxiv.org/abs/2109.11678)
    """

    def __init__(
        self,
        groups,
        task_slots=True,
        shuffle=False,
        seed=None,
        task_learning_rates=None,
    ):
        super().__init__(task_slots, task_learning_rates)
        if (
            not isinstance(groups, (list, tuple))
            or not groups
            or not all(
                isinstance(group, (list, tuple)) and group for group in groups
            )
        ):
            raise ValueError(
                "Argument `groups` must be a non-empty list of non-empty lists "
                "of task names, such as `[['depth', 'normals'], ['edges']]`. "
                f"Received: groups={groups!r}"
            )
        self._groups = tuple(tuple(group) for group in groups)
        self.shuffle = check_flag("shuffle", shuffle)
        self.seed = check_seed(seed) if shuffle else seed

    def task_groups(self, task_names):
        named = [name for group in self._groups for name in group]
        unknown = [name for name in named if name not in task_names]
        missing = [name for name in task_names if name not in named]
        twice = sorted({name for name in named if named.count(name) > 1})
        if unknown or missing or twice:
            wrong = [
                f"{what} {names}"
                for what, names in (
                    ("unknown tasks", unknown),
                    ("missing tasks", missing),
                    ("tasks named twice", twice),
                )
                if names
            ]
            raise ValueError(
                "Argument `groups` must hold each of the model's tasks "
                f"{list(task_names)} exactly once. Received: "
                f"groups={[list(group) for group in self._groups]}, with "
                f"{', '.join(wrong)}. A task may have a group of its own."
            )
        return self._groups

    def order_groups(self, step):
        return random_permutation(self.seed, step, len(self._groups))

    def get_config(self):
        return {
            "groups": [list(group) for group in self._groups],
            **super().get_config(),
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
