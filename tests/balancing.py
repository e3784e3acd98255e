"""Balancers driven as training drives them."""

import functools

import keras
import numpy as np
import tensorflow as tf


@functools.cache
def compiled(case, num_tasks=None, dtype="float64", xla=False):
    """A `Balancing` in graphs, the same for equal arguments.

    Args:
        case: A `cases.BalancerCase`.
        num_tasks: Integer. Defaults to `None`: the tasks of the case.
        dtype: String, of the losses.
        xla: Whether XLA compiles the graphs.
    """
    return Balancing(case.balancer(num_tasks), xla, dtype)


class Balancing:
    """A balancer, and what training calls of it.

    Args:
        balancer: A bound `LossBalancer`.
        jit_compile: `None` runs eagerly, `False` in graphs that are traced
            once, `True` compiled by XLA.
        dtype: String, of the losses.
    """

    def __init__(self, balancer, jit_compile=None, dtype="float64"):
        self.balancer = balancer
        self.dtype = dtype
        self.measure, self.finish = balancer.measure, self._finish
        if jit_compile is not None:
            count = [balancer.num_tasks]
            losses = tf.TensorSpec(count, dtype)
            flags = tf.TensorSpec(count, "bool")
            compiled = functools.partial(
                tf.function, autograph=False, jit_compile=jit_compile
            )
            self.measure = compiled(
                self.measure, input_signature=[losses, flags]
            )
            self.finish = compiled(
                self.finish, input_signature=[losses, losses, flags]
            )

    def _finish(self, norms, after, trained):
        """What follows after the updates of a batch."""
        if self.balancer.requires_gradient_norms:
            self.balancer.note_gradient_norms(norms, trained)
        if self.balancer.update_after_step:
            self.balancer.update_after(after, trained)
        self.balancer.finish_batch(trained)

    def batch(
        self, losses, measured=None, norms=None, after=None, one_by_one=False
    ):
        """One batch; the weights that each task trained with, an array.

        Args:
            losses: Array of shape `[num_tasks]`.
            measured: Which tasks have labels. Defaults to `None`, all.
            norms: Lengths of gradients. Defaults to the losses.
            after: Losses after the updates. Defaults to 0.9 of the losses.
            one_by_one: Whether tasks are measured one after the other, as
                under `strategy="alternating"`.
        """
        losses = np.asarray(losses, "float64")
        count = len(losses)
        measured = np.ones(count, bool) if measured is None else measured
        norms = losses if norms is None else norms
        after = 0.9 * losses if after is None else after
        # Whatever is there of tasks without labels must not matter.
        hidden = self._constant(np.where(measured, losses, np.nan))
        visits = [np.asarray(measured)]
        if one_by_one:
            visits = [np.arange(count) == k for k in np.flatnonzero(measured)]
        used = np.full(count, np.nan)
        for visit in visits:
            weights = np.asarray(self.measure(hidden, tf.constant(visit)))
            used[visit] = weights[visit]
        self.finish(
            self._constant(norms), self._constant(after), tf.constant(measured)
        )
        return used

    def run(self, batches, **options):
        """Many batches, given as tuples; `[num_batches, num_tasks]`."""
        return np.array([self.batch(*batch, **options) for batch in batches])

    def start(self):
        """As before the first batch; returns the object."""
        self.balancer.reset_state()
        return self

    def _constant(self, values):
        return tf.constant(values, self.dtype)

    def state(self):
        """All numbers that the balancer keeps: dict from path to array."""
        variables = list(self.balancer.variables)
        if hasattr(self.balancer, "optimizer"):
            variables += self.balancer.optimizer.variables
        return {v.path: keras.ops.convert_to_numpy(v).copy() for v in variables}


def losses_of(num_tasks, count=6, seed=0, partly=True):
    """Batches of losses that fall and make noise, for `Balancing.batch`.

    Args:
        num_tasks: Integer.
        count: How many.
        seed: Integer.
        partly: Whether some tasks have no labels in some of the batches.
    """
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.logspace(-1, 1, num_tasks))
    for step in range(count):
        falling = np.exp(-0.1 * (1 + np.arange(num_tasks) % 3) * step)
        losses = levels * falling * rng.uniform(0.8, 1.25, num_tasks)
        measured = np.ones(num_tasks, bool)
        if partly and step % 3 == 2:
            measured[step % num_tasks] = False
        norms, factors = rng.uniform(0.5, 2, (2, num_tasks))
        yield losses, measured, losses * norms, losses * 0.9 * factors
