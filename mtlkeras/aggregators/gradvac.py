import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.pcgrad import check_order, draw_order, sum_of_rows
from mtlkeras.linalg.cosines import cosines_and_norms
from mtlkeras.linalg.sequential_projection import raise_cosines


@keras.saving.register_keras_serializable("mtlkeras")
class GradVac(GramianAggregator):
    """Gradient vaccine: cosines are raised to what they usually are.

    As `PCGrad`, with a running target `phi_ij` for the cosine of every pair in
    place of 0. Where `cos(p_i, g_j) < phi_ij`,

    ```
    p_i <- p_i + ||p_i|| (phi sqrt(1 - cos^2) - cos sqrt(1 - phi^2))
                 / (||g_j|| sqrt(1 - phi^2)) g_j
    phi_ij <- (1 - beta) phi_ij + beta cos(p_i, g_j)
    d = sum_i p_i
    ```

    It acts on gradients that agree less than usual, too, not on conflicts
    only. Choose it for many related tasks (it was made for multilingual
    models).

    Args:
        beta: Float in `[0, 1]`: how fast a target follows. Defaults to `0.5`
            (LibMTL, TorchJD; the paper has 0.01 in its experiments).
        order: `"random"` or `"ascending"`, as for `PCGrad`. Defaults to
            `"random"`.
        seed: Integer for the random orders. Defaults to `0`.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(GradVac()(jacobian)).round(4)
    array([0.5848, 3.8012, 3.8012])

    In the first step all targets are 0, hence the result of `PCGrad`.

    Departures: one target per pair of tasks, not per layer. The cosines of a
    changed gradient are computed without a constant in the denominator. A
    target counts as 0.999 at most: the formula has a pole at 1, where two
    tasks that were equal so far would cost one step of 1e8 as they part.

    References:
        - [Wang et al., 2020](https://arxiv.org/abs/2010.05874)
    """

    def __init__(self, beta=0.5, order="random", seed=0, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= beta <= 1:
            raise ValueError(
                f"Argument `beta` must be within 0 and 1. Received: beta={beta}"
            )
        self.beta = float(beta)
        self.order = check_order(order)
        self.seed = int(seed)

    def build_state(self, num_tasks, num_params):
        self.targets = self.add_state("targets", (num_tasks, num_tasks))

    def compute_weights(self, gramian, task_losses=None, live=None):
        self.ensure_built(gramian.shape[0])
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        order = draw_order(self.order, self.seed, self.steps, norms.shape[0])
        targets = ops.copy(self.targets)
        rows, targets = raise_cosines(
            cosines, nonzero, order, targets, self.beta
        )
        self.targets.assign(targets)
        return sum_of_rows(rows, norms, nonzero)

    def get_config(self):
        return {
            **super().get_config(),
            "beta": self.beta,
            "order": self.order,
            "seed": self.seed,
        }
