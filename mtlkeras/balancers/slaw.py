import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer


@keras.saving.register_keras_serializable("mtlkeras")
class SLAW(LossBalancer):
    """Losses divided by how much they vary from batch to batch.

    ```
    s_i   = max(floor, sqrt(E[L_i^2] - E[L_i]^2))
    w_i   = T (1 / s_i) / sum_k (1 / s_k)
    total = sum_i w_i L_i
    ```

    `E` is the mean over the batches so far while these are few, then an
    exponential one. The standard deviation of a task's loss stands for the
    length of its gradient, so this is the aim of `GradNorm` at the price of a
    few numbers. Choose it for losses of unlike scale where backward passes are
    dear. The unit of a loss does not change the direction of the step.

    Args:
        decay: Float within 0 and 1, of the means. Defaults to `0.99` (the
            authors' code). The first `1 / (1 - decay)` batches count alike.
        floor: Positive float: the least deviation. A task whose loss does not
            vary would have all of the weight; choose it well below the
            deviations of interest. Defaults to `1e-5` (the authors' code).
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = SLAW()
    >>> every = np.array([True, True])
    >>> for losses in ([1.0, 10.0], [2.0, 30.0]):  # deviations 0.5 and 10
    ...     weights = balancer.measure(np.array(losses), every)
    >>> keras.ops.convert_to_numpy(weights).round(3)
    array([1.905, 0.095])

    Departures: weights are 1 until every task has been measured twice. The
    variance is updated as such, which is the same number without the
    difference of two large ones (negative in float32 for losses that vary
    little).

    References:
        - [Crawshaw and Kosecka, 2021](https://arxiv.org/abs/2109.08218)
    """

    requires_all_losses = False

    def __init__(self, decay=0.99, floor=1e-5, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= decay <= 1 or not floor > 0:
            raise ValueError(
                "Argument `decay` must be within 0 and 1, and `floor` positive."
                f" Received: decay={decay!r}, floor={floor!r}"
            )
        self.decay = float(decay)
        self.floor = float(floor)

    def build_state(self, num_tasks):
        shape = (num_tasks,)
        self.counts = self.add_state("counts", shape, dtype="int64")
        self.means = self.add_state("means", shape)
        self.variances = self.add_state("variances", shape)

    def update_state(self, task_losses, measured):
        counts = self.counts + ops.cast(measured, "int64")
        self.counts.assign(counts)
        counts = ops.maximum(ops.cast(counts, "float64"), 1.0)
        rates = ops.maximum(1 / counts, 1 - self.decay)
        rates = ops.where(measured, rates, 0.0)
        distances = task_losses - self.means
        self.means.assign(self.means + rates * distances)
        self.variances.assign(
            (1 - rates) * (self.variances + rates * distances**2)
        )

    def call(self, task_losses):
        deviations = ops.maximum(ops.sqrt(self.variances), self.floor)
        parts = 1 / deviations
        weights = self.num_tasks * parts / ops.sum(parts)
        known = ops.all(self.counts > 1)
        return ops.sum(ops.where(known, weights, 1.0) * task_losses)

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "floor": self.floor,
        }
