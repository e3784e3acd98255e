import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task, values_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class TaskWeights(LossBalancer):
    """Weights that you set, also while `fit` runs.

    ```
    total = sum_i w_i L_i
    ```

    As `loss_weights` in `compile`, but `assign` changes them without a new
    `compile` and without tracing functions again, and they are saved with the
    model. Choose it for weights that follow a schedule or a callback:
    `callbacks.TaskWeightScheduler`, `callbacks.DynamicWeightAverage`. Under
    `strategy="alternating"` with SGD constant weights equal `loss_weights`.

    Args:
        initial_weights: Number, list with one number per task, or dict by task
            name; tasks not in a dict have the weight 1. Defaults to `None`
            (all 1).
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = TaskWeights([1.0, 0.5])
    >>> float(balancer(np.array([2.0, 6.0])))
    5.0

    By name, once the tasks have names; in a model they have:

    >>> balancer.bind(["segmentation", "depth"])
    >>> balancer.assign({"depth": 0.25})
    >>> float(balancer(np.array([2.0, 6.0])))
    3.5
    """

    requires_all_losses = False
    per_task_arguments = {"offset": 0.0, "initial_weights": 1.0}

    def __init__(self, initial_weights=None, **kwargs):
        super().__init__(**kwargs)
        self.initial_weights = check_per_task(
            "initial_weights", initial_weights
        )

    def build_state(self, num_tasks):
        self.weights_in_force = self.add_state(
            "weights_in_force",
            (num_tasks,),
            lambda shape, dtype: ops.convert_to_tensor(
                self.per_task("initial_weights"), dtype
            ),
        )
        # Of the last two epochs in which each task trained: what callbacks
        # derive weights from, saved with the model.
        self.epoch_losses = self.add_state(
            "epoch_losses",
            (2, num_tasks),
            keras.initializers.Constant(float("nan")),
        )

    def finish_epoch(self, task_losses):
        """Notes the losses of tasks that trained, after those of before."""
        losses = ops.convert_to_tensor(task_losses, "float64")
        before, last = ops.unstack(ops.copy(self.epoch_losses))
        shifted = ops.stack([last, losses])
        kept = ops.stack([before, last])
        self.epoch_losses.assign(ops.where(ops.isfinite(losses), shifted, kept))

    def call(self, task_losses):
        return ops.sum(self.weights_in_force * task_losses)

    def assign(self, weights):
        """Sets weights, from the next batch on.

        Args:
            weights: Dict by task name, whose other tasks keep theirs; or a
                number or list for all tasks.

        Raises:
            ValueError: If a name is unknown, a list too long or short, or the
                tasks are not known yet.
        """
        checked = check_per_task("weights", weights)
        if checked is None or not self.built:
            raise ValueError(
                "`TaskWeights.assign` needs weights, and tasks to give them to:"
                " put the balancer in force in a model, or call "
                f"`bind(task_names)` first. Received: weights={weights!r} for "
                f"the tasks {self.task_names}"
            )
        if isinstance(checked, dict) and self.task_names:
            now = ops.convert_to_numpy(self.weights_in_force).tolist()
            now = dict(zip(self.task_names, now, strict=True))
            checked = {**now, **checked}
        self.weights_in_force.assign(values_per_task("weights", checked, self))

    def get_config(self):
        return {
            **super().get_config(),
            "initial_weights": self.initial_weights,
        }
