"""Against another library: what `data/README.md` says of `balancers.npz`."""

import functools
import pathlib

import keras
import numpy as np
import pytest
from balancing import Balancing

from mtlkeras import balancers

FILE = pathlib.Path(__file__).parents[1] / "data" / "balancers.npz"
EXACT = 1e-11  # measured: 2e-14


@functools.cache
def golden():
    """Dict from name to array."""
    with np.load(FILE) as file:
        return dict(file)


def vectors(key, num_tasks):
    return golden()[f"{key}/T{num_tasks}"]


def new(balancer, num_tasks):
    balancer.bind([f"task_{k}" for k in range(num_tasks)])
    return balancer


def preference(num_tasks):
    return (np.arange(1, num_tasks + 1) / sum(range(num_tasks + 1))).tolist()


each_count = pytest.mark.parametrize("num_tasks", [2, 3, 5])


@each_count
@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("jd.GeometricMean", lambda count: balancers.GeometricMean()),
        ("jd.STCH_mu0.1", lambda count: balancers.STCH(mu=0.1)),
        (
            "jd.STCH_mu1_pref",
            lambda count: balancers.STCH(preference=preference(count)),
        ),
    ],
)
def test_functions_of_the_losses(key, make, num_tasks):
    balancer = new(make(num_tasks), num_tasks)
    for losses, weights, total in zip(
        vectors("L", num_tasks),
        vectors(f"w/{key}", num_tasks),
        vectors(f"val/{key}", num_tasks),
        strict=True,
    ):
        np.testing.assert_allclose(float(balancer(losses)), total, rtol=EXACT)
        found = balancer.compute_weights(losses)
        np.testing.assert_allclose(found, weights, rtol=EXACT)


@each_count
@pytest.mark.parametrize(
    ("key", "name", "variable"),
    [
        ("jd.UW", "UncertaintyWeighting", "log_variances"),
        ("jd.IMTLL", "IMTLL", "log_scales"),
    ],
)
def test_scales_learned_by_sgd(key, name, variable, num_tasks):
    rule = getattr(balancers, name)(learning_rate=0.1, optimizer="sgd")
    balancing = Balancing(new(rule, num_tasks))
    for losses, weights, total, learned in zip(
        vectors("L", num_tasks),
        vectors(f"w/{key}", num_tasks),
        vectors(f"val/{key}", num_tasks),
        vectors(f"param/{key}", num_tasks),
        strict=True,
    ):
        # Keras keeps the learning rate in float32: 0.1 (1 + 1.5e-8).
        np.testing.assert_allclose(float(rule(losses)), total, rtol=1e-7)
        np.testing.assert_allclose(balancing.batch(losses), weights, rtol=1e-7)
        found = keras.ops.convert_to_numpy(getattr(rule, variable))
        np.testing.assert_allclose(found, learned, rtol=0, atol=1e-7)


class ReferenceFAMO:
    """The definition in NumPy, with the constants of both libraries.

    Args:
        num_tasks: Integer.
        added: What is added to the losses in logarithms.
        keras_adam: Whether Adam is Keras's, with another epsilon, and with
            the learning rate and the corrections of bias by powers of numbers
            in float32.
    """

    def __init__(self, num_tasks, added, keras_adam, rate=0.025, decay=1e-3):
        self.logits = np.zeros(num_tasks)
        self.first = self.second = np.zeros(num_tasks)
        self.step, self.rate, self.decay = 0, rate, decay
        self.added, self.keras_adam = added, keras_adam

    def shares(self):
        parts = np.exp(self.logits - self.logits.max())
        return parts / parts.sum()

    def total_and_weights(self, losses):
        distances, shares = losses + self.added, self.shares()
        scale = 1 / np.sum(shares / distances)
        total = scale * np.sum(shares * np.log(distances))
        return total, scale * shares / distances

    def update(self, before, after):
        shares = self.shares()
        delta = np.log(before + self.added) - np.log(after + self.added)
        jacobian = np.diag(shares) - np.outer(shares, shares)
        gradient = jacobian @ delta + self.decay * self.logits
        self.step += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        rate, powers, epsilon = self.rate, np.array([0.9, 0.999]), 1e-8
        if self.keras_adam:
            rate, powers = np.float32(rate), powers.astype("float32")
        corrections = 1 - powers.astype("float64") ** self.step
        if self.keras_adam:
            epsilon = 1e-7 / np.sqrt(corrections[1])
        root = np.sqrt(self.second / corrections[1]) + epsilon
        self.logits = self.logits - rate * self.first / corrections[0] / root


@each_count
def test_reference_of_famo_is_that_of_the_other_library(num_tasks):
    reference = ReferenceFAMO(num_tasks, added=1e-8, keras_adam=False)
    for before, after, weights, total in zip(
        vectors("L", num_tasks),
        vectors("L_after", num_tasks),
        vectors("w/jd.FAMO", num_tasks),
        vectors("val/jd.FAMO", num_tasks),
        strict=True,
    ):
        found = reference.total_and_weights(before)
        np.testing.assert_allclose(found[0], total, rtol=EXACT)
        np.testing.assert_allclose(found[1], weights, rtol=EXACT)
        reference.update(before, after)
    np.testing.assert_allclose(
        reference.logits, vectors("logits_end/jd.FAMO", num_tasks), rtol=1e-9
    )


@each_count
@pytest.mark.parametrize("same_batch", [False, True])
def test_famo(num_tasks, same_batch):
    """The losses after each update are those of the next batch."""
    rule = new(balancers.FAMO(same_batch=same_batch), num_tasks)
    balancing = Balancing(rule)
    reference = ReferenceFAMO(num_tasks, added=0.0, keras_adam=True)
    for before, after, weights in zip(
        vectors("L", num_tasks),
        vectors("L_after", num_tasks),
        vectors("w/jd.FAMO", num_tasks),
        strict=True,
    ):
        used = balancing.batch(before, after=after)
        _, wanted = reference.total_and_weights(before)
        np.testing.assert_allclose(used, wanted, rtol=1e-10)
        if not same_batch:  # where the logits have moved on by now
            total = vectors("val/jd.FAMO", num_tasks)[reference.step]
            np.testing.assert_allclose(float(rule(before)), total, atol=2e-5)
        # Two constants apart: 1e-8 in the logarithms, and Adam's epsilon.
        np.testing.assert_allclose(used, weights, rtol=1e-4)
        reference.update(before, after)
