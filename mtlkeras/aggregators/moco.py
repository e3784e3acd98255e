import keras
from keras import ops

from mtlkeras.aggregators.aggregator import Aggregator
from mtlkeras.linalg.simplex_projection import simplex_projection


@keras.saving.register_keras_serializable("mtlkeras")
class MoCo(Aggregator):
    """MGDA with tracked gradients, for noisy batches.

    A running estimate of every task gradient takes the place of the gradient
    of the batch, and the weights move towards the shortest combination by a
    projected step:

    ```
    y_i <- y_i - beta_k (y_i - g_i)
    w   <- project(w - gamma_k (Y Y' + rho I) w)   on the simplex
    d   = sum_i w_i y_i,    beta_k = beta / k^sigma, gamma_k = gamma / k^sigma
    ```

    `MGDA` on the gradients of small batches is biased; this removes the bias.
    Choose it where MGDA is wanted and batches are small. It keeps `num_tasks`
    copies of the shared parameters.

    Args:
        beta: Positive float: rate of the estimates. Defaults to `0.5`.
        gamma: Positive float: rate of the weights. Defaults to `0.1`.
        rho: Float, not negative: pull of the weights towards each other.
            Defaults to `0.0`. (All three as in LibMTL, by an author.)
        sigma: Float: how fast both rates decay with the step `k = 1, 2, ...`.
            Defaults to `0.5`.
        projection: How weights get onto the simplex: `"simplex"`, the nearest
            point (the paper), or `"softmax"` (LibMTL). Defaults to
            `"simplex"`.
        scale_by_loss: Whether gradients are first given the length of their
            task's loss, as LibMTL does; needs `task_losses`. Defaults to
            `False`.
        **kwargs: As for `Aggregator`, without features: the estimates belong
            to parameters.

    Example:

    >>> rule = MoCo()
    >>> jacobian = np.array([[2.0, 0.0], [0.0, 2.0]])
    >>> keras.ops.convert_to_numpy(rule(jacobian))
    array([0.5, 0.5])

    The estimate and the weight of a task without labels rest, and the others
    share its part of the direction.

    Departures: published code uses a softmax, which is no projection and cannot
    reach the faces of the simplex.

    References:
        - [Fernando et al., 2023](https://openreview.net/forum?id=dLAYGdKTi2)
    """

    allows_features = False

    def __init__(
        self,
        beta=0.5,
        gamma=0.1,
        rho=0.0,
        sigma=0.5,
        projection="simplex",
        scale_by_loss=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not beta > 0 or not gamma > 0 or not rho >= 0:
            raise ValueError(
                "Arguments `beta` and `gamma` must be positive and `rho` not "
                f"negative. Received: beta={beta}, gamma={gamma}, rho={rho}"
            )
        if projection not in ("simplex", "softmax"):
            raise ValueError(
                "Argument `projection` must be 'simplex' or 'softmax'. "
                f"Received: projection={projection!r}"
            )
        self.beta, self.gamma, self.rho = float(beta), float(gamma), float(rho)
        self.sigma = float(sigma)
        self.projection = projection
        self.scale_by_loss = self.requires_losses = bool(scale_by_loss)

    def build_state(self, num_tasks, num_params):
        self.steps = self.add_state("steps", (), dtype="int64")
        self.estimates = self.add_state(
            "estimates", (num_tasks, num_params), dtype=self._state_dtype
        )
        self.task_weights = self.add_state(
            "task_weights",
            (num_tasks,),
            keras.initializers.Constant(1 / num_tasks),
        )
        self.used_weights = self.add_state(
            "used_weights", (num_tasks,), dtype="float32"
        )

    def aggregate(self, jacobian, task_losses, live):
        self.steps.assign_add(1)
        step = ops.cast(self.steps, "float64")
        decay = step**-self.sigma
        if self.scale_by_loss:
            squares = ops.sum(ops.cast(jacobian, "float64") ** 2, 1)
            lengths = ops.sqrt(squares)
            safe = ops.where(lengths > 0, lengths, 1.0)
            scale = ops.cast(task_losses / safe, jacobian.dtype)
            jacobian = jacobian * scale[:, None]
        estimates = ops.copy(self.estimates)
        rate = ops.where(live, self.beta * decay, 0.0)
        rate = ops.cast(rate, estimates.dtype)[:, None]
        rows = ops.cast(jacobian, estimates.dtype)
        estimates = estimates - rate * (estimates - rows)
        self.estimates.assign(estimates)
        tracked = ops.where(live[:, None], estimates, 0.0)
        gramian = ops.cast(
            ops.matmul(tracked, ops.transpose(tracked)), "float64"
        )
        weights = ops.copy(self.task_weights)
        mass = ops.sum(ops.where(live, weights, 0.0))
        used = self._move(share_of_live(weights, live), gramian, decay, live)
        self.task_weights.assign(ops.where(live, mass * used, weights))
        self.used_weights.assign(ops.cast(used, "float32"))
        used = ops.cast(used, estimates.dtype)
        return ops.matmul(used[None, :], tracked)[0]

    def _move(self, weights, gramian, decay, live):
        """A projected step of weights on the simplex of the live tasks."""
        pull = ops.matmul(gramian, weights[:, None])[:, 0] + self.rho * weights
        moved = weights - self.gamma * decay * pull
        if self.projection == "simplex":
            return simplex_projection(moved, live, 1.0)
        # Not minus infinity, of which a softmax over nothing makes NaN.
        moved = ops.where(live, moved, ops.max(moved))
        parts = ops.exp(moved - ops.max(moved))
        return share_of_live(parts, live)

    def _own_task_weights(self):
        if not self.built or not int(self.steps):
            return None
        return ops.convert_to_numpy(self.used_weights)

    def get_config(self):
        return {
            **super().get_config(),
            "beta": self.beta,
            "gamma": self.gamma,
            "rho": self.rho,
            "sigma": self.sigma,
            "projection": self.projection,
            "scale_by_loss": self.scale_by_loss,
        }


def share_of_live(weights, live):
    """Non-negative weights scaled to sum 1 on the live tasks, 0 elsewhere."""
    kept = ops.where(live, weights, 0.0)
    # Live tasks without any weight share alike.
    kept = ops.where(ops.sum(kept) > 0, kept, ops.cast(live, "float64"))
    return ops.divide_no_nan(kept, ops.sum(kept))
