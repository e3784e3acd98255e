"""Random orders and numbers: from the seed, and the same in every mode."""

import itertools

import numpy as np
import pytest
from cases import AGGREGATOR
from compiled import compiled
from jacobians import draw
from scipy import stats

from mtlkeras import aggregators
from mtlkeras.aggregators.graddrop import drop_signs, to_uniforms
from mtlkeras.aggregators.pcgrad import draw_order, sum_of_rows
from mtlkeras.linalg.cosines import cosines_and_norms
from mtlkeras.linalg.counter_hash import random_integers
from mtlkeras.linalg.sequential_projection import project_conflicts

T, P = 3, 7


def pcgrad(jacobian, order):
    """Row `i` meets the others in the order `order[i]`."""
    total = 0.0
    for i, row in enumerate(jacobian):
        p = row.copy()
        for j in order[i]:
            inner = p @ jacobian[j]
            if j != i and inner < 0:
                p = p - inner / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total = total + p
    return total


def conflicts(seed):
    """Gradients whose directions depend on the order."""
    rows = np.eye(T, P) + 0.1 * draw("normal", T, P, seed)
    rows[:, :T] -= 0.45  # negative inner products between all
    return rows


@pytest.mark.parametrize("id", ["pcgrad", "gradvac"])
def test_first_steps_are_pcgrad_in_the_drawn_order(id):
    rule = compiled(AGGREGATOR[id], T, P)
    jacobian = conflicts(0)
    order = np.asarray(draw_order("random", 0, 0, T))
    found = rule(jacobian)
    np.testing.assert_allclose(found, pcgrad(jacobian, order), rtol=1e-10)
    if id == "gradvac":
        return  # its targets move on
    for step in range(1, 6):
        order = np.asarray(draw_order("random", 0, step, T))
        found = rule.run(jacobian)
        np.testing.assert_allclose(found, pcgrad(jacobian, order), rtol=1e-10)


def test_order_matters_from_three_tasks_on_and_changes_from_step_to_step():
    rule = compiled(AGGREGATOR["pcgrad"], T, P)
    jacobian = conflicts(0)
    wanted = [
        pcgrad(jacobian, order)
        for order in itertools.product(
            itertools.permutations(range(T)), repeat=T
        )
    ]
    rule.rule.reset_state()
    found = np.array([rule.run(jacobian) for _ in range(12)])
    assert len(np.unique(found.round(9), axis=0)) > 1
    for direction in found:
        errors = np.linalg.norm(np.array(wanted) - direction, axis=1)
        assert np.min(errors) < 1e-10


def test_mean_over_all_orders_does_not_know_how_tasks_are_numbered():
    def mean_direction(jacobian):
        cosines, norms, nonzero = cosines_and_norms(jacobian @ jacobian.T)
        directions = [
            np.asarray(
                sum_of_rows(
                    project_conflicts(cosines, nonzero, np.array(order)),
                    norms,
                    nonzero,
                )
            )
            @ jacobian
            for order in itertools.product(
                itertools.permutations(range(T)), repeat=T
            )
        ]
        assert len(np.unique(np.round(directions, 9), axis=0)) > 1
        return np.mean(directions, 0)

    jacobian = conflicts(0)
    wanted = mean_direction(jacobian)
    found = mean_direction(jacobian[[2, 0, 1]])
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_orders_are_permutations_drawn_by_seed_and_step():
    drawn = {}
    for seed, step in itertools.product([0, 1], range(3)):
        order = np.asarray(draw_order("random", seed, step, 8))
        np.testing.assert_array_equal(np.sort(order, 1), [np.arange(8)] * 8)
        assert len(np.unique(order, axis=0)) > 1
        again = draw_order("random", seed, step, 8)
        np.testing.assert_array_equal(again, order)
        drawn[order.tobytes()] = (seed, step)
    assert len(drawn) == 6
    ascending = draw_order("ascending", 0, 0, 3)
    np.testing.assert_array_equal(ascending, [[0, 1, 2]] * 3)


@pytest.mark.parametrize("id", ["pcgrad", "gradvac", "graddrop"])
def test_equal_seeds_give_equal_sequences(id):
    def run(seed):
        cls = type(AGGREGATOR[id].given)
        rule = cls(seed=seed)
        return np.array([rule(conflicts(k)) for k in range(4)])

    first = run(3)
    np.testing.assert_array_equal(run(3), first)
    assert np.any(run(4) != first)


@pytest.mark.parametrize("id", ["pcgrad", "gradvac", "graddrop"])
def test_xla_draws_the_same(id):
    plain = compiled(AGGREGATOR[id], T, P)
    xla = compiled(AGGREGATOR[id], T, P, xla=True)
    plain.rule.reset_state()
    xla.rule.reset_state()
    for k in range(10):
        found = xla.run(conflicts(k))
        np.testing.assert_allclose(found, plain.run(conflicts(k)), rtol=1e-9)


# -- GradDrop -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers(dtype):
    words = random_integers(0, 0, 50_000)
    uniforms = np.asarray(to_uniforms(words, dtype), "float64")
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-3
    # The ends are never reached: neither by the first nor by the last word.
    ends = np.asarray(to_uniforms(np.array([0, 2**32 - 1]), dtype))
    assert ends.dtype == dtype
    assert 0 < ends[0] < ends[1] < 1


def test_graddrop_keeps_one_sign_per_coordinate():
    jacobian = draw("normal", T, P)
    positive = np.maximum(jacobian, 0).sum(0)
    negative = np.minimum(jacobian, 0).sum(0)
    rule = compiled(AGGREGATOR["graddrop"], T, P)
    rule.rule.reset_state()
    for _ in range(20):
        direction = rule.run(jacobian)
        is_positive = np.isclose(direction, positive)
        assert np.all(is_positive | np.isclose(direction, negative))


def test_graddrop_is_the_sum_where_all_signs_agree():
    for sign in (1.0, -1.0):
        jacobian = sign * draw("aligned", T, P).astype("float32")
        rule = compiled(AGGREGATOR["graddrop"], T, P, dtype="float32")
        rule.rule.reset_state()
        for _ in range(5):
            direction = rule.run(jacobian)
            np.testing.assert_allclose(direction, jacobian.sum(0), rtol=1e-6)


def test_graddrop_expects_the_sum():
    jacobian = draw("normal", 5, 4)
    draws = 10_000
    # Every column `draws` times: one call draws for all.
    words = random_integers(7, 0, 4 * draws)
    many = drop_signs(
        np.repeat(jacobian, draws, axis=1), to_uniforms(words, "float64"), 0.0
    )
    many = np.asarray(many).reshape(4, draws)
    error = many.mean(1) - jacobian.sum(0)
    assert np.all(np.abs(error) < 4 * many.std(1) / np.sqrt(draws))


def test_leaks_of_graddrop():
    jacobian = draw("normal", T, P)
    passes = aggregators.GradDrop(leak=1.0)(jacobian)
    np.testing.assert_allclose(passes, jacobian.sum(0))
    # The one task that leaks is there whatever sign is kept.
    one = aggregators.GradDrop(leak=(0.0, 1.0, 0.0))
    rest = compiled(AGGREGATOR["graddrop"], T, P)(jacobian)
    for i in range(P):
        others = jacobian[[0, 2], i]
        kept = [0.0, others[others > 0].sum(), others[others < 0].sum()]
        left = np.asarray(one(jacobian))[i] - jacobian[1, i]
        assert np.isclose(kept, left).any()
    assert rest.shape == (P,)
