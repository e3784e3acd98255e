import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task, values_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class GeometricMean(LossBalancer):
    """(to be written)"""

    requires_positive_losses = True

    def __init__(self, offset=0.0, **kwargs):
        super().__init__(**kwargs)
        self.offset = check_per_task("offset", offset)

    def call(self, task_losses):
        shifted = task_losses + self.offset_of_tasks()
        return ops.exp(ops.mean(ops.log(shifted)))

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
