import keras
from keras import ops

from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer
from mtlkeras.balancers.per_task import values_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class UncertaintyWeighting(LearnedLossBalancer):
    """Losses divided by a learned variance, the uncertainty of each task.

    ```
    total = sum_i exp(-s_i) L_i / 2 + s_i / 2
    ```

    with learned `s_i`, the logarithm of a variance. For constant losses it
    settles at `exp(s_i) = L_i`, where every task contributes alike, whatever
    the unit of its loss. Choose it as the standard remedy for losses of unlike
    scale; noisy tasks get less weight, also where the noise is only a hard
    problem. It needs time to settle: `learning_rate` times the number of
    batches has to be more than the logarithm of the ratio of the losses.

    Args:
        classification_tasks: List of names of tasks whose term is
            `exp(-s_i) L_i + s_i / 2`: the paper's form for a cross-entropy,
            without the `1 / 2` that comes from the Gaussian likelihood of a
            regression. Defaults to `None` (none, as most published code).
        learning_rate: Float, of the `s_i`. Defaults to `1e-3`, that of Keras's
            Adam: published code leaves the `s_i` to the model's optimizer.
        optimizer: Id of a Keras optimizer for the `s_i`. Defaults to `"adam"`.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = UncertaintyWeighting()
    >>> float(balancer(np.array([1.0, 3.0])))  # s = 0
    2.0
    >>> keras.ops.convert_to_numpy(
    ...     balancer.compute_weights(np.array([1.0, 3.0])))
    array([0.5, 0.5])

    Departures: the `s_i` have a learning rate of their own and no weight decay,
    which would pull all tasks to equal weights.

    References:
        - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115)
    """

    requires_all_losses = False
    per_task_arguments = {"offset": 0.0, "classification_tasks": 0.5}

    def __init__(
        self,
        classification_tasks=None,
        learning_rate=1e-3,
        optimizer="adam",
        **kwargs,
    ):
        super().__init__(learning_rate, optimizer, **kwargs)
        given = classification_tasks
        if isinstance(given, str) or not all(
            isinstance(name, str) for name in given or ()
        ):
            raise ValueError(
                "Argument `classification_tasks` must be a list of task names. "
                f"Received: classification_tasks={given!r}"
            )
        self.classification_tasks = None if given is None else list(given)

    def build_state(self, num_tasks):
        self.log_variances = self.add_learned("log_variances", (num_tasks,))

    def per_task(self, name):
        if name != "classification_tasks":
            return super().per_task(name)
        # What the loss is multiplied by.
        chosen = dict.fromkeys(self.classification_tasks or (), 1.0)
        return values_per_task(name, chosen or None, self, 0.5)

    def call(self, task_losses):
        s = self.log_variances
        scaled = self.per_task("classification_tasks") * task_losses
        return ops.sum(ops.exp(-s) * scaled + s / 2)

    def get_config(self):
        return {
            **super().get_config(),
            "classification_tasks": self.classification_tasks,
        }
