import keras
from keras import ops

from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer
from mtlkeras.balancers.per_task import check_per_task

LEAST_WEIGHT = 1e-6


@keras.saving.register_keras_serializable("mtlkeras")
class GradNorm(LearnedLossBalancer):
    """Learned weights that bring the gradients of tasks to target lengths.

    With `n_i` the length of the gradient of task `i`, once per batch

    ```
    r_i = (L_i / L_i(first)) / mean_k (L_k / L_k(first))
    w  <- w - Adam(gradient of sum_i |w_i n_i - mean_k (w_k n_k) r_i^alpha|)
    w  <- T w / sum_k w_k
    ```

    with the targets `mean_k (w_k n_k) r_i^alpha` held constant. Tasks that
    learn slowly (large `r_i`) get longer gradients. Choose it for losses of
    unlike scale, where gradients of tasks shall count alike (`alpha=0`) or the
    slow ones more.

    Args:
        alpha: Float, not negative: how much slow tasks are helped. Defaults to
            `1.5` (the paper's best on NYUv2).
        norms_at: Where gradients are taken: `"features"`, the tensors where
            the shared part of the model ends, which needs no backward pass
            beyond the heads; or `"last_shared_layer"`, the weights of that
            layer (the paper). Defaults to `"features"`.
        feature_layers: List of names of the layers whose outputs are the
            features, for models whose graph is not known. Defaults to `None`:
            found from the graph.
        learning_rate: Float, of the weights. Defaults to `0.025`, as in many
            public implementations; the paper's could not be verified. It is
            also about how far a weight gets in a batch, so weights much below
            it are not resolved.
        offset: Number, list or dict by task name, added to the losses, for
            losses that may be negative. Defaults to `0.0`.
        optimizer: Id of a Keras optimizer for the weights. Defaults to
            `"adam"`, as in public implementations.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = GradNorm(alpha=0.0)
    >>> losses, every = np.array([1.0, 1.0]), np.array([True, True])
    >>> for _ in range(80):
    ...     weights = balancer.measure(losses, every)
    ...     balancer.note_gradient_norms(np.array([1.0, 3.0]), every)
    ...     balancer.finish_batch(every)
    >>> keras.ops.convert_to_numpy(weights).round(1)
    array([1.5, 0.5])

    Weights are 1 in the first batch. A task's first loss is that of the first
    batch in which it has labels. The weights of tasks without labels rest: the
    others share what is left of the sum `T`.

    Departures: at the features by default, since they are at hand; a weight is
    kept at 1e-6 at least, since with `|w_i n_i|` in the objective nothing else
    keeps it positive.

    References:
        - [Chen et al., 2018](https://arxiv.org/abs/1711.02257)
    """

    requires_all_losses = False
    requires_positive_losses = True
    requires_gradient_norms = True

    def __init__(
        self,
        alpha=1.5,
        norms_at="features",
        feature_layers=None,
        learning_rate=0.025,
        offset=0.0,
        optimizer="adam",
        **kwargs,
    ):
        super().__init__(learning_rate, optimizer, **kwargs)
        if not alpha >= 0:
            raise ValueError(
                "Argument `alpha` must not be negative. Received: "
                f"alpha={alpha!r}"
            )
        if norms_at not in ("features", "last_shared_layer"):
            raise ValueError(
                "Argument `norms_at` must be 'features' or "
                f"'last_shared_layer'. Received: norms_at={norms_at!r}"
            )
        if feature_layers is not None and norms_at != "features":
            raise ValueError(
                "Argument `feature_layers` goes with norms_at='features'. "
                f"Received: feature_layers={feature_layers!r} with "
                f"norms_at={norms_at!r}"
            )
        self.alpha = float(alpha)
        self.norms_at = norms_at
        self.feature_layers = (
            None if feature_layers is None else list(feature_layers)
        )
        self.offset = check_per_task("offset", offset)

    def build_state(self, num_tasks):
        shape = (num_tasks,)
        self.learned_weights = self.add_learned(
            "learned_weights", shape, "ones"
        )
        self.first_losses = self.add_state("first_losses", shape, "ones")
        self.started = self.add_state("started", shape, dtype="bool")
        # Of the batch: lengths of gradients, and whose are known.
        self.norms = self.add_state("norms", shape)
        self.noted = self.add_state("noted", shape, dtype="bool")

    def call(self, task_losses):
        return ops.sum(self.learned_weights * task_losses)

    def update_state(self, task_losses, measured):
        first = ops.logical_and(measured, ops.logical_not(self.started))
        self.first_losses.assign(
            ops.where(first, task_losses, self.first_losses)
        )
        self.started.assign(ops.logical_or(self.started, measured))

    def note_gradient_norms(self, norms, measured):
        norms = ops.cast(norms, "float64")
        measured = ops.logical_and(measured, ops.isfinite(norms))
        self.norms.assign(ops.where(measured, norms, self.norms))
        self.noted.assign(ops.logical_or(measured, self.noted))

    def finish_batch(self, trained):
        moves = ops.logical_and(trained, self.noted)
        moves = ops.logical_and(moves, self.started)
        weights = ops.copy(self.learned_weights)
        norms = ops.where(moves, self.norms, 0.0)
        targets = self.targets(weights * norms, moves)
        self.learn(
            lambda: ops.sum(ops.abs(self.learned_weights * norms - targets)),
            moves,
        )
        self.learned_weights.assign(
            renormalized(self.learned_weights, weights, moves)
        )
        self.noted.assign(ops.zeros_like(self.noted))

    def targets(self, lengths, moves):
        """What the weighted lengths of the tasks that move should be."""
        ratios = self.shifted(self.last_losses) / self.shifted(
            self.first_losses
        )
        rates = ops.where(moves, ratios / mean_of(ratios, moves), 1.0)
        targets = mean_of(lengths, moves) * rates**self.alpha
        return ops.where(moves, targets, 0.0)

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "norms_at": self.norms_at,
            "feature_layers": self.feature_layers,
            "offset": self.offset,
        }


def mean_of(values, moves):
    """The mean of those that move."""
    total = ops.sum(ops.where(moves, values, 0.0))
    return total / ops.maximum(ops.sum(ops.cast(moves, "float64")), 1.0)


def renormalized(weights, before, moves):
    """Positive weights; those that moved keep their sum of before."""
    positive = ops.maximum(weights, LEAST_WEIGHT)
    share = mean_of(before, moves) / mean_of(positive, moves)
    return ops.where(moves, positive * share, before)
