import keras
from keras import ops

from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.linalg.cosines import cosines_and_norms
from mtlkeras.linalg.counter_hash import random_integers
from mtlkeras.linalg.sequential_projection import project_conflicts


@keras.saving.register_keras_serializable("mtlkeras")
class PCGrad(GramianAggregator):
    """Gradient surgery: conflicting parts are projected out, one by one.

    Every gradient `p_i = g_i` meets the others in random order, and

    ```
    p_i <- p_i - <p_i, g_j> / ||g_j||^2 g_j   where  <p_i, g_j> < 0
    d = sum_i p_i
    ```

    Without conflict it is the sum. Choose it as the simple and well-known
    remedy against conflicts; with more than two tasks it does not keep every
    task from harm (`UPGrad` does), since a later projection may undo an
    earlier one.

    Args:
        order: `"random"` draws a new order for each gradient in every step;
            `"ascending"` is the order of the tasks. Defaults to `"random"`
            (the paper).
        seed: Integer for the random orders. Defaults to `0`. Equal seeds give
            equal orders, which a saved model goes on with.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> keras.ops.convert_to_numpy(PCGrad()(jacobian)).round(4)
    array([0.5848, 3.8012, 3.8012])

    Departures: computed from the Gramian, so the cost does not grow with
    `T^2` products of full length. A gradient is not projected on itself, as
    the authors' code does where a projection has turned it round; nor is the
    order fixed, as there, where the result of the shuffle is dropped. The
    result is the sum (some ports take the mean).

    References:
        - [Yu et al., 2020](https://arxiv.org/abs/2001.06782)
    """

    def __init__(self, order="random", seed=0, **kwargs):
        super().__init__(**kwargs)
        self.order = check_order(order)
        self.seed = int(seed)

    def compute_weights(self, gramian, task_losses=None, live=None):
        self.ensure_built(gramian.shape[0])
        cosines, norms, nonzero = cosines_and_norms(gramian, live)
        order = draw_order(self.order, self.seed, self.steps, norms.shape[0])
        rows = project_conflicts(cosines, nonzero, order)
        return sum_of_rows(rows, norms, nonzero)

    def get_config(self):
        return {
            **super().get_config(),
            "order": self.order,
            "seed": self.seed,
        }


def check_order(order):
    if order not in ("random", "ascending"):
        raise ValueError(
            "Argument `order` must be 'random' or 'ascending'. Received: "
            f"order={order!r}"
        )
    return order


def draw_order(order, seed, step, num_tasks):
    """In which order each gradient meets the others, `[num_tasks] * 2`."""
    if order == "ascending":
        ascending = ops.arange(num_tasks, dtype="int32")
        return ops.broadcast_to(ascending, (num_tasks, num_tasks))
    keys = random_integers(seed, step, num_tasks * num_tasks)
    keys = ops.reshape(keys, (num_tasks, num_tasks))
    # Equal keys are told apart by task, so the order is the same everywhere.
    tasks = ops.arange(num_tasks, dtype="int64")
    return ops.argsort(keys * num_tasks + tasks, axis=1)


def sum_of_rows(rows, norms, nonzero):
    """Weights of the gradients in the sum of the changed gradients."""
    lengths = ops.where(nonzero, norms, 0.0)
    weights = ops.matmul(lengths[None, :], rows)[0] / norms
    return ops.where(nonzero, weights, 0.0)
