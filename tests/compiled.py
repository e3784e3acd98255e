"""Aggregators in functions that are traced once and shared by all tests."""

import functools

import numpy as np
import tensorflow as tf


def compiled(case, num_tasks, num_params, dtype="float64", xla=False):
    """A `Compiled`, the same for equal arguments."""
    if case.is_gramian and not xla:
        num_params = None  # any number
    return _compiled(case, num_tasks, num_params, dtype, xla)


@functools.cache
def _compiled(*arguments):
    return Compiled(*arguments)


def forget():
    """Drops all functions; else every later garbage collection walks them."""
    _compiled.cache_clear()


class Compiled:
    """A rule in a `tf.function`, plain or compiled by XLA.

    Args:
        case: A `cases.AggregatorCase`.
        num_tasks: Integer.
        num_params: Integer or `None`.
        dtype: String, of the gradients.
        xla: Whether XLA compiles the function.
    """

    def __init__(self, case, num_tasks, num_params, dtype, xla):
        self.rule = case.aggregator()
        self.dtype = dtype
        self.step = tf.function(
            self.rule.__call__,
            autograph=False,
            jit_compile=xla,
            input_signature=[
                tf.TensorSpec([num_tasks, num_params], dtype),
                tf.TensorSpec([num_tasks], "float64"),
                tf.TensorSpec([num_tasks], "bool"),
            ],
        )

    def run(self, jacobian, task_losses=None, live=None):
        """One more step; the direction as an array."""
        count = len(jacobian)
        losses = losses_of(count) if task_losses is None else task_losses
        live = np.ones(count, bool) if live is None else live
        direction = self.step(
            tf.constant(jacobian, self.dtype),
            tf.constant(losses, "float64"),
            tf.constant(live),
        )
        return direction.numpy()

    def __call__(self, jacobian, task_losses=None, live=None):
        """The first step of a new rule."""
        self.rule.reset_state()
        return self.run(jacobian, task_losses, live)

    def padded(self, jacobian, task_losses=None):
        """As a call, with fewer tasks than the function is for."""
        num_tasks = self.step.input_signature[1].shape[0]
        count = len(jacobian)
        rows = np.full((num_tasks, jacobian.shape[1]), np.nan)
        losses = np.full(num_tasks, np.nan)
        rows[:count] = jacobian
        losses[:count] = (
            losses_of(count) if task_losses is None else task_losses
        )
        direction = self(rows, losses, np.arange(num_tasks) < count)
        return direction

    @property
    def weights(self):
        return self.rule.last_task_weights


def losses_of(num_tasks):
    """Some positive task losses."""
    return 0.5 + 0.3 * np.arange(num_tasks)
