import keras
from keras import ops

from mtlkeras.aggregators.aggregator import Aggregator
from mtlkeras.linalg.counter_hash import WORD, random_integers


@keras.saving.register_keras_serializable("mtlkeras")
class GradDrop(Aggregator):
    """Every coordinate follows one sign only, drawn in proportion.

    With the purity `P = (1 + sum_i g_i / sum_i |g_i|) / 2` of a coordinate and
    a uniform number `U`,

    ```
    d = sum_i (leak_i + (1 - leak_i) m_i) g_i,
    m_i = 1 if g_i > 0 and P > U, or g_i < 0 and P < U; else 0
    ```

    Where all tasks agree on the sign it is the sum; else the positive or the
    negative gradients are dropped. Choose it as a cheap, noisy remedy against
    conflicts coordinate by coordinate. It is no weighted sum of gradients, so
    there are no task weights to look at.

    Args:
        leak: Float within 0 and 1, or one per task: the part of a gradient
            that always passes. Defaults to `0.0`.
        seed: Integer for the random numbers. Defaults to `0`. Equal seeds give
            equal numbers, which a saved model goes on with.
        **kwargs: As for `Aggregator`.

    Example:

    >>> jacobian = np.array([[1.0, 2.0], [3.0, 1.0]])
    >>> keras.ops.convert_to_numpy(GradDrop()(jacobian))
    array([4., 3.])

    Departures: on the parameters' gradients by default, where the paper drops
    at the features (`gradients_at="features"`), after a multiplication by the
    sign of the feature, which is left out here.

    References:
        - [Chen et al., 2020](https://arxiv.org/abs/2010.06808)
    """

    per_task_arguments = ("leak",)

    def __init__(self, leak=0.0, seed=0, **kwargs):
        super().__init__(**kwargs)
        leaks = [leak] if isinstance(leak, (int, float)) else list(leak)
        if not leaks or not all(0 <= value <= 1 for value in leaks):
            raise ValueError(
                "Argument `leak` must be a number within 0 and 1, or one per "
                f"task. Received: leak={leak!r}"
            )
        self.leak = leak if isinstance(leak, (int, float)) else leaks
        self.seed = int(seed)

    def build_state(self, num_tasks, num_params):
        if not isinstance(self.leak, (int, float)) and (
            len(self.leak) != num_tasks
        ):
            raise ValueError(
                "Argument `leak` must hold one number for each of the "
                f"{num_tasks} tasks. Received: leak={self.leak!r}"
            )
        self.steps = self.add_state("steps", (), dtype="int64")

    def aggregate(self, jacobian, task_losses, live):
        # The size of features is known in the graph only.
        size = ops.shape(jacobian)[1]
        words = random_integers(self.seed, self.steps, size)
        self.steps.assign_add(1)
        uniforms = to_uniforms(words, jacobian.dtype)
        return drop_signs(jacobian, uniforms, self.leak)

    def get_config(self):
        return {
            **super().get_config(),
            "leak": self.leak,
            "seed": self.seed,
        }


def to_uniforms(words, dtype):
    """Random integers as floats strictly between 0 and 1.

    With 0 or 1 among them a gradient could be dropped that all tasks agree on.
    As many bits are used as the floats hold exactly.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    count = 2**23 if dtype == "float32" else WORD
    numbers = ops.cast(ops.floor_divide(words, WORD // count), dtype)
    return (numbers + 0.5) / count


def drop_signs(jacobian, uniforms, leak):
    """The direction for given uniform numbers, `[num_params]` both.

    Args:
        jacobian: Tensor of shape `[num_tasks, num_params]`.
        uniforms: Tensor of shape `[num_params]`.
        leak: Float, or a sequence of one per task.
    """
    total = ops.sum(jacobian, 0)
    size = ops.sum(ops.abs(jacobian), 0)
    purity = (1.0 + total / ops.where(size > 0, size, 1.0)) / 2.0
    kept = ops.logical_or(
        ops.logical_and(jacobian > 0, purity > uniforms),
        ops.logical_and(jacobian < 0, purity < uniforms),
    )
    leak = ops.reshape(ops.convert_to_tensor(leak, jacobian.dtype), (-1, 1))
    share = leak + (1.0 - leak) * ops.cast(kept, jacobian.dtype)
    return ops.sum(share * jacobian, 0)
