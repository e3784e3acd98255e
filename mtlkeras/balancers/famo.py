import keras
import numpy as np
from keras import ops

from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer
from mtlkeras.balancers.per_task import check_per_task


@keras.saving.register_keras_serializable("mtlkeras")
class FAMO(LearnedLossBalancer):
    """Weights under which the logarithms of all losses fall at one rate.

    With `D_i = L_i + offset_i`, learned logits `xi` and `z = softmax(xi)`,

    ```
    total = c sum_i z_i log D_i,   c = 1 / sum_i (z_i / D_i)   a constant
    w_i   = c z_i / D_i,           sum_i w_i = 1
    xi   <- xi - Adam(J' delta + decay xi),
    delta_i = log D_i - log D_i(next),   J the derivative of the softmax
    ```

    Tasks whose loss falls faster than the others, in relative terms, lose
    weight. Choose it for positive losses of unlike scale, as a balancer that
    looks at progress and not at gradients: one backward pass. Weights sum to 1,
    so that steps of SGD are `T` times shorter than those of the mean of
    weights 1. The unit of a loss changes the length of the step only.

    Args:
        learning_rate: Float, of the logits. Defaults to `0.025` (the authors'
            code and its ports).
        decay: Float, not negative: pulls the logits to 0, equal weights in
            relative terms. Defaults to `1e-3` (the paper). The authors' code
            has `1e-5` and `1e-2` in other places; it matters: on the paper's
            toy problem 0 solves all five starts and `1e-3` three.
        same_batch: Whether `delta` compares the losses of one batch before and
            after the update, as the paper does, at the price of one more
            forward pass. Defaults to `False`: those of a batch and the next,
            with the logits moving as soon as all tasks have been measured once
            more, before the weights of that batch are computed. This is what
            the authors do on their toy problem. With small batches it is
            noisier.
        offset: Number, list or dict by task name, added to the losses: minus
            the least value they can have (`min_losses` of the authors' code).
            Defaults to `0.0`.
        optimizer: Id of a Keras optimizer for the logits. Defaults to `"adam"`
            (the paper).
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = FAMO()
    >>> weights = balancer.compute_weights(np.array([1.0, 3.0]))
    >>> keras.ops.convert_to_numpy(weights)
    array([0.75, 0.25])

    With `same_batch` the softmax of a step is over the tasks that trained; the
    logits of the others rest. Without it a task that has no labels for a while
    keeps the logits of all at rest.

    Departures: no `1e-8` is added in the logarithms, which would tie the
    weights to the unit of small losses; a loss of exactly 0 counts as not
    measured. Keras's Adam has an epsilon of `1e-7`, not `1e-8`.

    References:
        - [Liu et al., 2023](https://arxiv.org/abs/2306.03792)
    """

    requires_positive_losses = True

    def __init__(
        self,
        learning_rate=0.025,
        decay=1e-3,
        same_batch=False,
        offset=0.0,
        optimizer="adam",
        **kwargs,
    ):
        super().__init__(learning_rate, optimizer, **kwargs)
        if not decay >= 0:
            raise ValueError(
                "Argument `decay` must not be negative. Received: "
                f"decay={decay!r}"
            )
        self.decay = float(decay)
        self.same_batch = self.update_after_step = bool(same_batch)
        self.offset = check_per_task("offset", offset)

    def build_state(self, num_tasks):
        shape = (num_tasks,)
        self.logits = self.add_learned("logits", shape)
        # Losses when the logits moved last, and what was measured since.
        self.previous_losses = self.add_state("previous_losses", shape, "ones")
        self.fresh = self.add_state("fresh", shape, dtype="bool")
        self.started = self.add_state("started", (), dtype="bool")

    def call(self, task_losses):
        shares = softmax(self.logits)
        distances = self.shifted(task_losses)
        scale = 1 / ops.sum(shares / distances)
        return ops.stop_gradient(scale) * ops.sum(shares * ops.log(distances))

    def update_state(self, task_losses, measured):
        fresh = ops.logical_or(self.fresh, measured)
        if self.same_batch:
            self.fresh.assign(fresh)
            return
        complete = ops.all(fresh)
        moves = ops.logical_and(fresh, ops.logical_and(complete, self.started))
        self.move(self.previous_losses, task_losses, moves)
        self.previous_losses.assign(
            ops.where(complete, task_losses, self.previous_losses)
        )
        self.started.assign(ops.logical_or(self.started, complete))
        self.fresh.assign(ops.where(complete, False, fresh))

    def update_after(self, task_losses, trained):
        losses = ops.cast(task_losses, "float64")
        trained = ops.logical_and(trained, self.fresh)
        shifted = self.shifted(losses)
        negative = ops.logical_and(trained, ops.less(shifted, 0))
        self.negative.assign(self.negative + ops.cast(negative, "int32"))
        sound = ops.logical_and(ops.greater(shifted, 0), ops.isfinite(shifted))
        moves = ops.logical_and(trained, sound)
        self.move(self.last_losses, losses, moves)
        self.fresh.assign(ops.zeros_like(self.fresh))

    def move(self, before, after, moves):
        """One step of the logits of the tasks that move.

        Args:
            before, after: Losses, `[num_tasks]`.
            moves: Boolean tensor of shape `[num_tasks]`.
        """
        ratios = self.shifted(before) / self.shifted(after)
        decreases = ops.log(ops.where(moves, ratios, 1.0))
        # The largest is taken off, which changes nothing but rounding: equal
        # decreases must have the gradient 0, of which Adam makes no step.
        largest = ops.max(ops.where(moves, decreases, -np.inf))
        decreases = ops.where(moves, decreases - largest, 0.0)

        def objective():
            logits = ops.convert_to_tensor(self.logits)
            shares = softmax(ops.where(moves, logits, -1e30))
            decay = self.decay / 2 * ops.sum(logits**2)
            return ops.sum(shares * decreases) + decay

        self.learn(objective, moves)

    def finish_batch(self, trained):
        """Nothing: the logits move when losses have been measured."""

    def get_config(self):
        return {
            **super().get_config(),
            "decay": self.decay,
            "same_batch": self.same_batch,
            "offset": self.offset,
        }


def softmax(logits):
    """As that of `keras.ops`, which warns of a single task."""
    return ops.exp(ops.log_softmax(logits))
