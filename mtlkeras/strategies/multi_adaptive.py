import keras

from mtlkeras.strategies.update_strategy import UpdateStrategy


@keras.saving.register_keras_serializable("mtlkeras")
class MultiAdaptive(UpdateStrategy):
    """All task gradients at the same weights, one adaptive direction per task.

    One forward pass and `T` backward passes; every task's gradient goes through
    that task's own optimizer slots, and the directions are added:

    ```
    theta <- theta - learning_rate * sum_t m_t / (sqrt(v_t) + epsilon)
    ```

    Compared with `alternating` it saves `T - 1` forward passes and takes all
    gradients at the same point; for losses that are linear in the weights the
    two are the same. As there, the loss scale of a task cancels with an
    adaptive optimizer.

    Args:
        reduction: `"sum"` (as in the implementations read) or `"mean"` of the
            directions on the shared variables, which keeps their step size
            independent of the number of tasks. Defaults to `"sum"`.
        task_learning_rates: Dict `{task: factor}`, the weight of a task's
            direction. Defaults to `None`.

    Example:

    >>> MultiAdaptive(reduction="mean").task_groups(("left", "right"))
    (('left',), ('right',))

    References:
        - [Hervella et al., 2024: Multi-Adaptive Optimization for multi-task
          learning with deep neural networks](
          https://doi.org/10.1016/j.neunet.2023.11.038). No official code was
          found; that its Adam form equals the formula above is not verified
          against the paper, only against a third-party implementation.
        - [Yang et al., 2023: AdaTask](https://arxiv.org/abs/2211.15055): the
          same update on the shared weights, checked against their code.

    Departures: a task's bias-correction counter counts its own updates, so a
    task without labels in a batch rests (the codes count batches). The
    directions are applied one after the other, which is their sum for every
    optimizer whose direction does not depend on the weights themselves.
    """

    at_same_weights = True

    def __init__(self, reduction="sum", task_learning_rates=None):
        super().__init__(True, task_learning_rates)
        if reduction not in ("sum", "mean"):
            raise ValueError(
                "Argument `reduction` must be 'sum' or 'mean'. Received: "
                f"reduction={reduction!r}"
            )
        self.reduction = reduction

    def bind(self, task_names):
        if self.reduction == "mean":
            self.shared_scale = 1.0 / len(task_names)
        super().bind(task_names)

    def task_groups(self, task_names):
        return tuple((name,) for name in task_names)

    def get_config(self):
        return {
            "reduction": self.reduction,
            "task_learning_rates": self.task_learning_rates,
        }
