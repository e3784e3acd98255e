"""Rules that remember: against other libraries and against NumPy loops."""

import math

import numpy as np
import pytest
from cases import AGGREGATOR, AggregatorCase
from compiled import Compiled, compiled
from jacobians import draw, golden
from scipy.optimize import nnls

from mtlkeras import aggregators

T, P = 3, 7


def new(rule, num_tasks=T, num_params=P):
    case = AggregatorCase(rule, "rule")
    return Compiled(case, num_tasks, num_params, "float64", False)


# Tolerances relative to the size of the gradients; measured a tenth of them.
# Their causes are constants and solvers of the other libraries.
SEQUENCES = {
    "jd.GradVac_asc": (aggregators.GradVac(order="ascending"), 1e-7),
    "lib.GradVac_asc": (aggregators.GradVac(order="ascending"), 1e-7),
    "jd.CRMOGM_UPGrad_a0.9": (aggregators.EMA("upgrad", momentum=0.9), 1e-2),
    "lib.MoCo": (
        aggregators.MoCo(projection="softmax", scale_by_loss=True),
        1e-8,
    ),
    "lib.DB_MTL": (aggregators.DBMTL(), 1e-5),
    "lib.DB_MTL_sigma0.5": (aggregators.DBMTL(sigma=0.5), 1e-5),
    "jd.NashMTL_every3": (aggregators.NashMTL(update_every=3), 2e-6),
}


@pytest.mark.parametrize("key", SEQUENCES)
def test_twelve_steps_of_another_library(key):
    rule, tolerance = SEQUENCES[key]
    for num_tasks in (2, 5):
        step = new(rule, num_tasks, 20)
        jacobians = golden()[f"seq/J/T{num_tasks}"]
        losses = golden()[f"seq/L/T{num_tasks}"]
        wanted = golden()[f"seq/{key}/T{num_tasks}"]
        for jacobian, loss, direction in zip(
            jacobians, losses, wanted, strict=True
        ):
            error = np.linalg.norm(step.run(jacobian, loss) - direction)
            assert error <= tolerance * np.linalg.norm(jacobian)


# -- the definitions, one operation after the other ---------------------------


class ReferenceMoCo:
    def __init__(self, beta=0.5, gamma=0.1, rho=0.0, sigma=0.5):
        self.beta, self.gamma, self.rho, self.sigma = beta, gamma, rho, sigma
        self.estimates, self.step = 0.0, 0

    def __call__(self, jacobian, losses):
        count = len(jacobian)
        if not self.step:
            self.weights = np.full(count, 1 / count)
        self.step += 1
        decay = self.step**-self.sigma
        change = jacobian - self.estimates
        self.estimates = self.estimates + self.beta * decay * change
        gramian = self.estimates @ self.estimates.T
        pull = gramian @ self.weights + self.rho * self.weights
        moved = self.weights - self.gamma * decay * pull
        # The nearest point of the simplex, by bisection on what is taken off.
        low, high = np.min(moved) - 1, np.max(moved)
        for _ in range(200):
            middle = (low + high) / 2
            if np.sum(np.maximum(moved - middle, 0)) > 1:
                low = middle
            else:
                high = middle
        self.weights = np.maximum(moved - high, 0)
        return self.weights @ self.estimates


class ReferenceDBMTL:
    def __init__(self, beta=0.9, sigma=0.0):
        self.beta, self.sigma = beta, sigma
        self.estimates, self.step = 0.0, 0

    def __call__(self, jacobian, losses):
        self.step += 1
        momentum = self.beta / self.step**self.sigma
        rows = jacobian / losses[:, None]  # gradients of log L
        self.estimates = momentum * self.estimates + (1 - momentum) * rows
        lengths = np.linalg.norm(self.estimates, axis=1)
        return np.max(lengths) * sum(
            e / n for e, n in zip(self.estimates, lengths, strict=True)
        )


class ReferenceGradVac:
    def __init__(self, beta):
        self.beta, self.targets = beta, None

    def __call__(self, jacobian, losses):
        count = len(jacobian)
        if self.targets is None:
            self.targets = np.zeros((count, count))
        total = 0.0
        for i in range(count):
            p = jacobian[i].copy()
            for j in range(count):
                if i == j:
                    continue
                g = jacobian[j]
                cosine = p @ g / (np.linalg.norm(p) * np.linalg.norm(g))
                phi = self.targets[i, j]
                if cosine < phi:
                    root = math.sqrt(1 - phi**2)
                    lift = phi * math.sqrt(1 - cosine**2) - cosine * root
                    lift *= np.linalg.norm(p) / (np.linalg.norm(g) * root)
                    p = p + lift * g
                self.targets[i, j] += self.beta * (cosine - phi)
            total = total + p
        return total


def min_norm_weights(jacobian):
    """Of the shortest vector between the rows, by scipy.

    Without the condition that they sum to one, but with that sum pulled
    towards 1: the solution has the same direction.
    """
    system = np.vstack([jacobian.T, np.ones(len(jacobian))])
    weights, _ = nnls(system, np.append(np.zeros(jacobian.shape[1]), 1.0))
    return weights / weights.sum()


class ReferenceTaskTensioner:
    def __init__(self, alpha=0.3, window=10, bias_scale=1.0):
        self.alpha, self.window, self.scale = alpha, window, bias_scale
        self.history, self.sums = [], None

    def __call__(self, jacobian, losses):
        lengths = np.linalg.norm(jacobian, axis=1)
        unit = jacobian / lengths[:, None]
        weights = min_norm_weights(unit)
        shortest = weights @ unit
        central = shortest / np.sum(weights / lengths)
        self.history = (self.history + [lengths])[-self.window :]
        if len(self.history) < self.window:
            return central
        sums = np.sum(self.history, 0)
        before, self.sums = self.sums, sums
        if before is None:
            return central
        direction = central
        for gradient, ratio, loss in zip(
            jacobian, sums / before, losses, strict=True
        ):
            rate = ratio + math.log10(loss)
            tension = self.alpha / (1 + math.exp(-math.e * (rate - 1)))
            tension = max(0, tension + 1 - self.alpha)
            away = gradient - central
            direction = direction + self.scale * tension * away / (
                np.linalg.norm(away)
            )
        for gradient, length in zip(jacobian, lengths, strict=True):
            inner = gradient @ direction
            if inner < 0:
                # Along the segment to the gradient until they are orthogonal.
                share = inner / (inner - length**2)
                direction = direction + share * (gradient - direction)
        return direction


class ReferenceEMA:
    def __init__(self, momentum):
        self.momentum, self.average = momentum, None

    def __call__(self, jacobian, losses):
        weights = min_norm_weights(jacobian)
        if self.average is None:
            self.average = weights
        self.average = self.momentum * self.average
        self.average = self.average + (1 - self.momentum) * weights
        return self.average @ jacobian


REFERENCES = {
    "moco": (aggregators.MoCo(), ReferenceMoCo()),
    "moco_other": (
        aggregators.MoCo(0.7, 0.3, 0.5, 0.2),
        ReferenceMoCo(0.7, 0.3, 0.5, 0.2),
    ),
    "db_mtl": (aggregators.DBMTL(), ReferenceDBMTL()),
    "db_mtl_decayed": (
        aggregators.DBMTL(0.5, 0.5),
        ReferenceDBMTL(0.5, 0.5),
    ),
    "gradvac": (
        aggregators.GradVac(0.1, "ascending"),
        ReferenceGradVac(0.1),
    ),
    "task_tensioner": (
        aggregators.TaskTensioner(),
        ReferenceTaskTensioner(),
    ),
    "task_tensioner_short": (
        aggregators.TaskTensioner(0.9, 3, 0.2),
        ReferenceTaskTensioner(0.9, 3, 0.2),
    ),
    "ema": (aggregators.EMA("mgda", 0.8), ReferenceEMA(0.8)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_the_definition_step_by_step(name):
    rule, reference = REFERENCES[name]
    step = new(rule)
    rng = np.random.default_rng(2)
    for k in range(15):
        jacobian = draw("conflict" if k % 3 else "normal", T, P, k)
        losses = rng.uniform(0.2, 3.0, T)
        wanted = reference(jacobian, losses)
        found = step.run(jacobian, losses)
        size = np.linalg.norm(wanted)
        assert np.linalg.norm(found - wanted) <= 1e-9 * size, k


# -- tasks without labels -----------------------------------------------------


def test_moco_goes_on_where_the_only_weighty_task_rests():
    step = new(aggregators.MoCo(gamma=10.0))
    rows = np.diag([0.1, 10.0, 10.0]) @ np.eye(T, P)
    step.run(rows)
    assert step.weights[0] == 1.0  # the shortest has all the weight
    live = np.array([False, True, True])
    assert np.linalg.norm(step.run(rows, live=live)) > 1.0
    np.testing.assert_array_equal(step.weights, [0.0, 0.5, 0.5])
    # The weight that rested is back.
    step.run(rows)
    assert step.weights[0] > 0.9


def test_estimates_of_a_resting_task_rest():
    for rule in (aggregators.MoCo(scale_by_loss=True), aggregators.DBMTL()):
        step = new(rule)
        step.run(draw("normal", T, P))
        before = step.rule.estimates.numpy()
        holes = draw("normal", T, P, 1)
        holes[1] = np.nan
        losses = np.array([1.0, np.nan, 1.0])
        step.run(holes, losses, np.array([True, False, True]))
        after = step.rule.estimates.numpy()
        np.testing.assert_array_equal(after[1], before[1])
        assert np.all(np.isfinite(after))
        assert np.all(after[[0, 2]] != before[[0, 2]])


def test_nash_mtl_keeps_its_weights_between_updates():
    step = new(aggregators.NashMTL(None, update_every=3))
    fresh = compiled(AGGREGATOR["nash_mtl_rare"], T, P)
    weights = []
    for k in range(7):
        step.run(draw("normal", T, P, k))
        weights.append(step.weights)
    for k in range(7):
        np.testing.assert_array_equal(weights[k], weights[k - k % 3])
        fresh(draw("normal", T, P, k - k % 3))
        np.testing.assert_allclose(weights[k], fresh.weights, rtol=1e-6)
    assert np.all(weights[0] != weights[3])


def test_nash_mtl_solves_again_for_a_task_that_has_no_weight():
    step = new(aggregators.NashMTL(update_every=100))
    jacobian = draw("normal", T, P)
    step.run(jacobian, live=np.array([True, False, True]))
    assert step.weights[1] == 0
    step.run(jacobian)
    assert np.all(step.weights > 0)
    before = step.weights
    # It rests, and keeps its weight.
    step.run(jacobian, live=np.array([True, False, True]))
    assert step.weights[1] == 0
    step.run(jacobian)
    np.testing.assert_allclose(step.weights[1], before[1], rtol=1e-6)
    # A batch without any label spoils nothing.
    step.rule.reset_state()
    step.run(jacobian, live=np.zeros(T, bool))
    assert np.linalg.norm(step.run(jacobian)) > 0.5


def test_ema_starts_with_the_first_weights_of_every_task():
    step = new(aggregators.EMA("sum", momentum=0.5))
    jacobian = draw("normal", T, P)
    step.run(jacobian, live=np.array([True, True, False]))
    np.testing.assert_array_equal(step.weights, [1, 1, 0])
    step.run(jacobian)
    np.testing.assert_array_equal(step.weights, [1, 1, 1])


def test_ema_of_signs_keeps_the_sign_of_a_single_task():
    rule = aggregators.EMA(aggregators.Normalized([1, -1, 1]))
    jacobian = draw("normal", T, P)
    found = rule(jacobian, live=[False, True, False])
    np.testing.assert_array_equal(found, -jacobian[1])


def test_history_of_a_task_tensioner_without_labels_rests():
    step = new(aggregators.TaskTensioner(window=2))
    for k in range(4):
        live = np.array([True, k < 2, True])
        step.run(draw("normal", T, P, k), live=live)
    np.testing.assert_array_equal(step.rule.seen, [4, 2, 4])
    lengths = np.linalg.norm(draw("normal", T, P, 0), axis=1)
    np.testing.assert_allclose(step.rule.lengths.numpy()[1, 0], lengths[1])


def test_ema_learns_nothing_from_a_step_with_a_single_task():
    rule = aggregators.EMA("nash_mtl")
    long = 1e-3 * np.eye(2)
    rule(long)
    before = rule.last_task_weights
    rule(long, live=[True, False])
    np.testing.assert_array_equal(rule.last_task_weights, [1.0, 0.0])
    rule(long)
    np.testing.assert_allclose(rule.last_task_weights, before, rtol=1e-6)
