import keras
from keras import ops

from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer


@keras.saving.register_keras_serializable("mtlkeras")
class UncertaintyWeighting(LearnedLossBalancer):
    """(to be written)"""

    depends_on_losses = False

    def build_state(self, num_tasks):
        self.log_variances = self.add_learned("log_variances", (num_tasks,))

    def call(self, task_losses):
        s = self.log_variances
        return ops.sum(ops.exp(-s) * task_losses / 2 + s / 2)
