import math

import keras
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.linalg.counter_hash import WORD, random_integers


@keras.saving.register_keras_serializable("mtlkeras")
class RandomLossWeighting(LossBalancer):
    """Random weights, drawn anew in every batch.

    ```
    total = sum_i w_i L_i
    w     = softmax(z), z_i standard normal     distribution="normal"
    w     uniform on the simplex                distribution="dirichlet"
    ```

    Choose it as the baseline that a rule with a theory has to beat: the mean
    weights are equal, and the noise in them may help as that of small batches
    does. The weights sum to 1, so that steps of SGD are `T` times shorter than
    those of the sum; `total` changes that.

    Args:
        distribution: `"normal"` or `"dirichlet"` (all parameters 1). Defaults
            to `"normal"` (the paper's).
        total: Positive float: the sum of the weights. Defaults to `1.0`, as
            in the paper and its code.
        seed: Integer for the random numbers. Defaults to `0`. Equal seeds give
            equal weights, which a saved model goes on with.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = RandomLossWeighting(seed=1)
    >>> weights = balancer.compute_weights(np.array([1.0, 1.0, 1.0]))
    >>> print(round(float(keras.ops.sum(weights)), 6))
    1.0

    There is one draw per batch, under strategies with several updates as well:
    these all see the same weights.

    References:
        - [Lin et al., 2022](https://arxiv.org/abs/2111.10603)
    """

    requires_all_losses = False

    def __init__(self, distribution="normal", total=1.0, seed=0, **kwargs):
        super().__init__(**kwargs)
        if distribution not in ("normal", "dirichlet"):
            raise ValueError(
                "Argument `distribution` must be 'normal' or 'dirichlet'. "
                f"Received: distribution={distribution!r}"
            )
        if not 0 < total < math.inf:
            raise ValueError(
                "Argument `total` must be a positive number. Received: "
                f"total={total!r}"
            )
        self.distribution = distribution
        self.total = float(total)
        self.seed = int(seed)

    def build_state(self, num_tasks):
        self.batches = self.add_state("batches", (), dtype="int64")

    def draw(self):
        """The weights of the batch, `[num_tasks]`."""
        words = random_integers(self.seed, self.batches, 2 * self.num_tasks)
        # Strictly between 0 and 1, so that logarithms are finite.
        uniforms = (ops.cast(words, "float64") + 0.5) / WORD
        exponentials = -ops.log(uniforms[: self.num_tasks])
        if self.distribution == "dirichlet":
            return self.total * exponentials / ops.sum(exponentials)
        angles = 2 * math.pi * uniforms[self.num_tasks :]
        normals = ops.sqrt(2 * exponentials) * ops.cos(angles)
        # `ops.softmax` warns of a single task.
        return self.total * ops.exp(ops.log_softmax(normals))

    def call(self, task_losses):
        return ops.sum(self.draw() * task_losses)

    def finish_batch(self, trained):
        self.batches.assign_add(1)

    def get_config(self):
        return {
            **super().get_config(),
            "distribution": self.distribution,
            "total": self.total,
            "seed": self.seed,
        }
