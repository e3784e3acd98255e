import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task, values_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class TaskWeights(LossBalancer):
    """(to be written)"""

    depends_on_losses = False

    def __init__(self, weights=None, **kwargs):
        super().__init__(**kwargs)
        self.initial_weights = check_per_task("weights", weights)

    def build_state(self, num_tasks):
        self.weights_in_force = self.add_state(
            "weights_in_force",
            (num_tasks,),
            lambda shape, dtype: ops.convert_to_tensor(
                values_per_task("weights", self.initial_weights, self, 1.0),
                dtype,
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
        losses = ops.convert_to_tensor(task_losses, "float64")
        before, last = ops.unstack(ops.copy(self.epoch_losses))
        shifted = ops.stack([last, losses])
        kept = ops.stack([before, last])
        self.epoch_losses.assign(
            ops.where(ops.isfinite(losses), shifted, kept)
        )

    def call(self, task_losses):
        return ops.sum(self.weights_in_force * task_losses)

    def assign(self, weights):
        """Sets weights, by name or for all tasks, also while `fit` runs."""
        now = ops.convert_to_numpy(self.weights_in_force).tolist()
        weights = check_per_task("weights", weights)
        if isinstance(weights, dict) and self.task_names:
            weights = {**dict(zip(self.task_names, now, strict=True)), **weights}
        self.weights_in_force.assign(values_per_task("weights", weights, self))

    def get_config(self):
        return {**super().get_config(), "weights": self.initial_weights}
