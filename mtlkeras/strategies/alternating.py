import keras

from mtlkeras.linalg.counter_hash import random_permutation
from mtlkeras.strategies.update_strategy import (
    UpdateStrategy,
    check_flag,
    check_seed,
)


@keras.saving.register_keras_serializable("mtlkeras")
class Alternating(UpdateStrategy):
    """Every task in turn on the same batch, each with its own optimizer slots.

    For each batch and for each task `t` in order: a forward pass with the
    weights as they now are, the gradient of that task's loss alone, and an
    update of the shared and the task's own variables with optimizer `t`:

    ```
    for t in tasks:
        theta, theta_t <- optimizer_t(gradient of L_t at (theta, theta_t))
    ```

    All optimizer statistics (moments and bias-correction counter) are per
    task. With an adaptive optimizer each task's step is then invariant to the
    scale of its loss, so a task with a small gradient is not drowned. Choose
    it for tasks of different nature or scale, when a step may cost as much as
    `T` single-task steps. With plain SGD or SGD with momentum there is next to
    nothing to gain over `joint`: separate velocities nearly add up to the
    joint one.

    One batch moves the shared weights by up to `T` updates, so tune the
    learning rate again (the authors' rates fall as the number of groups
    grows). Loss weights cancel in an adaptive optimizer's step: use
    `task_learning_rates` to prioritise.

    Args:
        task_slots: Boolean. `False` keeps one optimizer state for all tasks
            (the authors' "IUS" ablation). Unlike their code, which lets the
            decaying momentum of the other heads move them, only the variables
            of the running task are then updated. Defaults to `True` ("IO").
        shuffle: Boolean. Draws the order of the tasks for each batch; the
            authors keep it fixed. Defaults to `False`.
        seed: Integer or `None`. Seed of the order. Defaults to `None`.
        task_learning_rates: Dict `{task: factor}`. Multiplies that task's
            update. Defaults to `None` (1 for all).

    Example:

    >>> Alternating().task_groups(("left", "right"))
    (('left',), ('right',))

    References:
        - [Pascal et al., 2021: Improved optimization strategies for deep
          Multi-Task Networks](https://arxiv.org/abs/2109.11678). The update
          was checked against the authors' published code; the paper's result
          tables were not reproduced.
        - [Elich et al., 2023](https://arxiv.org/abs/2311.04698) re-test
          per-task optimizer state independently.
    """

    def __init__(
        self,
        task_slots=True,
        shuffle=False,
        seed=None,
        task_learning_rates=None,
    ):
        super().__init__(task_slots, task_learning_rates)
        self.shuffle = check_flag("shuffle", shuffle)
        self.seed = check_seed(seed) if shuffle else seed

    def task_groups(self, task_names):
        return tuple((name,) for name in task_names)

    def order_groups(self, step):
        return random_permutation(self.seed, step, len(self.groups))

    def get_config(self):
        return {
            **super().get_config(),
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
