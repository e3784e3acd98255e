import math

import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms, resolution
from mtlkeras.linalg.positive_definite import matvec
from mtlkeras.linalg.simplex_qp import simplex_qp


@keras.saving.register_keras_serializable("mtlkeras")
class TaskTensioner(GramianAggregator):
    """A common descent direction, pulled towards tasks that do not converge.

    1. The central direction, with the min-norm weights `w` of the unit
       gradients `u_i = g_i / n_i`: `d = gamma sum_i w_i u_i`,
       `gamma = 1 / sum_i (w_i / n_i)`.
    2. A tension for every task, from the sums `S_i` of its last `window`
       gradient lengths now and one step before, and from its loss:

       ```
       r_i = S_i / S_i' + log10(L_i)
       c_i = max(0, alpha sigmoid(e (r_i - 1)) + 1 - alpha)
       v   = d + bias_scale sum_i c_i (g_i - d) / ||g_i - d||
       ```
    3. For each task in turn: where `<g_i, v> < 0`, `v` is moved along the
       segment towards `g_i` until it is orthogonal to it.

    Until `window + 1` steps have been seen the direction is `d`. Choose it
    where some tasks diverge or stagnate under a common descent direction.
    Every `c_i` lies within `1 - alpha` and 1, so with two tasks only their
    difference acts, `alpha` at most.

    Args:
        alpha: Float within 0 and 1: how much the tension varies. Defaults to
            `0.3` (the authors' example).
        window: Integer, how many steps a sum of lengths covers. Defaults to
            `10` (the authors' example).
        bias_scale: Float, factor on the tensions. The unit vectors of the bias
            carry no scale of the gradients, so where these are small the bias
            dominates. Defaults to `1.0`, the method as published.
        **kwargs: As for `Aggregator`.

    Needs `task_losses`. A task whose loss is not positive has no logarithm and
    is left out; a loss below 1e-12 counts as 1e-12.

    Example:

    >>> rule = TaskTensioner()
    >>> jacobian = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> keras.ops.convert_to_numpy(rule(jacobian, np.ones(2))).round(4)
    array([0.6667, 0.6667])

    Departures: the min-norm problem is solved exactly, and step 3 without
    trigonometry (it is the same point). A task without labels is left out and
    its history rests; a gradient of 0 is left out. Fidelity: written after the
    authors' code, the paper beyond its abstract was not available.

    References:
        - [Nakamura et al., 2022](https://arxiv.org/abs/2204.06698)
    """

    requires_losses = True
    requires_positive_losses = True

    def __init__(self, alpha=0.3, window=10, bias_scale=1.0, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= alpha <= 1:
            raise ValueError(
                "Argument `alpha` must be within 0 and 1. Received: "
                f"alpha={alpha!r}"
            )
        if int(window) != window or window < 1:
            raise ValueError(
                "Argument `window` must be a positive integer. Received: "
                f"window={window!r}"
            )
        self.alpha, self.bias_scale = float(alpha), float(bias_scale)
        self.window = int(window)

    def build_state(self, num_tasks, num_params):
        self.lengths = self.add_state("lengths", (num_tasks, self.window))
        self.seen = self.add_state("seen", (num_tasks,), dtype="int64")
        self.sums = self.add_state("sums", (num_tasks,))

    def compute_weights(self, gramian, task_losses=None, live=None):
        self.ensure_built(gramian.shape[0])
        num_tasks = gramian.shape[0]
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        ridge = resolution(gramian.dtype, num_tasks)
        ones = ops.cast(nonzero, "float64")
        nothing = ops.logical_not(ops.any(nonzero))
        ones = ops.where(nothing, 1.0, ones)
        weights, _ = simplex_qp(cosines, 1.0 - ones, ones, ridge)
        weights = ops.where(nonzero, weights, 0.0)
        # Coefficients on the unit gradients from here on.
        gamma = ops.sum(weights / norms)
        central = weights / ops.where(gamma > 0, gamma, 1.0)
        tension = self._tensions(norms, nonzero, task_losses)
        pulled = central + self._pull(
            cosines, norms, nonzero, central, tension, ridge
        )
        pulled = self._keep_from_harm(cosines, norms, nonzero, pulled)
        biased = ops.any(tension > 0)
        return ops.where(biased, pulled, central) / norms

    def _tensions(self, norms, nonzero, task_losses):
        """`c_i`; 0 for a task whose history is too short."""
        seen = ops.copy(self.seen)
        position = ops.cast(ops.mod(seen, self.window), "int32")
        here = ops.one_hot(position, self.window, dtype="float64")
        here = ops.where(nonzero[:, None], here, 0.0)
        lengths = ops.copy(self.lengths)
        lengths = lengths * (1.0 - here) + norms[:, None] * here
        seen = seen + ops.cast(nonzero, "int64")
        sums, before = ops.sum(lengths, 1), ops.copy(self.sums)
        self.lengths.assign(lengths)
        self.seen.assign(seen)
        full = ops.logical_and(nonzero, seen >= self.window)
        self.sums.assign(ops.where(full, sums, before))
        ready = ops.logical_and(full, seen > self.window)
        # Only tasks with a history pull, and only if all have one.
        ready = ops.logical_and(
            ready, ops.all(ops.logical_or(ready, ops.logical_not(nonzero)))
        )
        losses = ops.maximum(ops.cast(task_losses, "float64"), 1e-12)
        ratio = sums / ops.where(before > 0, before, 1.0) + ops.log10(losses)
        tension = self.alpha * ops.sigmoid(math.e * (ratio - 1.0))
        tension = ops.maximum(tension + 1.0 - self.alpha, 0.0)
        return ops.where(ready, tension, 0.0)

    def _pull(self, cosines, norms, nonzero, central, tension, ridge):
        towards = ops.eye(norms.shape[0], dtype="float64") * norms - central
        square = ops.sum(ops.matmul(towards, cosines) * towards, 1)
        # A gradient that is the central direction itself does not pull.
        distinct = square > ridge * norms * norms
        distinct = ops.logical_and(distinct, nonzero)
        length = ops.sqrt(ops.where(distinct, square, 1.0))
        pull = ops.where(distinct, self.bias_scale * tension / length, 0.0)
        return ops.matmul(pull[None, :], towards)[0]

    def _keep_from_harm(self, cosines, norms, nonzero, pulled):
        identity = ops.eye(norms.shape[0], dtype="float64")

        def turn(i, pulled):
            unit, norm = ops.take(identity, i, 0), ops.take(norms, i)
            along = ops.sum(unit * matvec(cosines, pulled))
            harmed = ops.logical_and(along < 0, ops.take(nonzero, i))
            turned = norm / (norm - along) * (pulled - along * unit)
            return ops.where(harmed, turned, pulled)

        return ops.fori_loop(0, norms.shape[0], turn, pulled)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "window": self.window,
            "bias_scale": self.bias_scale,
        }
