"""Gradients that are zero, equal, opposite or that cancel: the promises."""

import numpy as np
import pytest
from cases import AGGREGATOR, RULES
from compiled import compiled
from jacobians import draw

T, P = 3, 7

CONE = ["upgrad", "dual_proj"]
BALANCED = ["nash_mtl", "fairgrad"]
WITH_A_ZERO = ["imtl_g", "con_fig", *BALANCED, "normalized"]


def rule(id):
    return compiled(AGGREGATOR[id], T, P)


def test_all_gradients_zero():
    for id in AGGREGATOR:
        assert not rule(id)(np.zeros((T, P))).any(), id
    rule("mgda")(np.zeros((T, P)))
    np.testing.assert_allclose(rule("mgda").weights, 1 / T)


def test_one_zero_gradient():
    jacobian = draw("zerorow", T, P)
    others = jacobian[:2]
    # MGDA: the zero is the shortest vector of the hull.
    assert not rule("mgda")(jacobian).any()
    np.testing.assert_array_equal(rule("mgda").weights, [0, 0, 1])
    # The share of the mean stays 1 / T, and the task has no influence.
    for id in CONE:
        found = rule(id)(jacobian)
        assert rule(id).weights[2] == 0
        alone = rule(id).padded(others)
        np.testing.assert_allclose(found, alone * 2 / 3, rtol=1e-9)
    # CAGrad: counted in the mean, not in what is maximised.
    found = rule("cagrad")(jacobian)
    shift = found - jacobian.mean(0)
    radius = 0.5 * np.linalg.norm(jacobian.mean(0))
    np.testing.assert_allclose(np.linalg.norm(shift), radius, rtol=1e-9)
    assert np.all(others @ found > others @ jacobian.mean(0) - 1e-9)
    # These are as they would be without the task.
    for id in WITH_A_ZERO:
        found = rule(id)(jacobian)
        assert rule(id).weights[2] == 0
        wanted = rule(id).padded(others)
        if id == "nash_mtl":  # shortened to 1
            np.testing.assert_allclose(np.linalg.norm(found), 1.0)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, err_msg=id)
    for id in ("pcgrad_ascending", "gradvac_ascending"):
        found = rule(id)(jacobian)
        assert rule(id).weights[2] == 0
        np.testing.assert_allclose(found, rule(id).padded(others))


@pytest.mark.parametrize("id", AGGREGATOR)
def test_two_zero_gradients(id):
    jacobian = draw("normal", T, P)
    jacobian[[0, 2]] = 0.0
    found = rule(id)(jacobian)
    assert np.all(np.isfinite(found))
    if id.startswith("mgda"):
        assert not found.any()
        np.testing.assert_array_equal(rule(id).weights, [0.5, 0, 0.5])
    elif found.any() and not id.startswith("graddrop"):
        cosine = found @ jacobian[1] / np.linalg.norm(found)
        assert abs(cosine) / np.linalg.norm(jacobian[1]) > 1 - 1e-9


def test_gradients_all_equal():
    gradient = draw("normal", 1, P)
    size = np.linalg.norm(gradient)
    jacobian = np.repeat(gradient, T, 0)
    factors = {
        "sum": T,
        "pcgrad_ascending": T,
        "mean": 1,
        "mgda": 1,
        "upgrad": 1,
        "dual_proj": 1,
        "imtl_g": 1,
        "con_fig": T,
        "nash_mtl": 1 / size,
        "normalized": T / size,
        "cagrad": 1.5,
        "task_tensioner": 1,
        "graddrop": T,
        # The one singular value is shared by all.
        "aligned_mtl": 1,
    }
    for id, factor in factors.items():
        found = rule(id)(jacobian)
        np.testing.assert_allclose(
            found, factor * gradient[0], rtol=1e-7, err_msg=id
        )
        if AGGREGATOR[id].is_gramian:
            np.testing.assert_allclose(np.ptp(rule(id).weights), 0, atol=1e-6)


def test_opposite_gradients_cancel():
    gradient = draw("normal", 1, P)[0]
    jacobian = np.stack([gradient, -gradient])
    size = np.linalg.norm(gradient)
    for id in AGGREGATOR:
        case = AGGREGATOR[id]
        if not case.equivariant or id.startswith(("graddrop", "mgda_loss")):
            continue
        if id.startswith(("moco_scaled", "db_mtl")):
            continue  # losses differ
        found = rule(id).padded(jacobian)
        # Nash and FairGrad have no solution; weights grow to 1e8.
        tolerance = 1e-5 if id.startswith(("nash", "fair")) else 1e-9
        assert np.linalg.norm(found) <= tolerance * size, id
    rule("mgda").padded(jacobian)
    np.testing.assert_allclose(rule("mgda").weights[:2], 0.5, rtol=1e-6)
    for id in ("pcgrad", "gradvac"):
        assert np.linalg.norm(rule(id).padded(jacobian)) <= 1e-9 * size


def test_pareto_stationary_gradients():
    for seed in range(4):
        jacobian = draw("stationary", T, P, seed)
        size = np.linalg.norm(jacobian)
        for id in ("mgda", *CONE, "cagrad_one", *BALANCED, "imtl_g"):
            found = np.linalg.norm(rule(id)(jacobian))
            tolerance = 1e-6 if id in BALANCED else 1e-7
            assert found <= tolerance * max(size, 1), id
        weights = rule("upgrad")(jacobian), rule("upgrad").weights
        assert np.max(np.abs(weights[1])) < 1e3
        for id in ("pcgrad", "gradvac", "aligned_mtl", "con_fig"):
            assert np.all(np.isfinite(rule(id)(jacobian)))


def test_lengths_from_a_millionth_to_a_million():
    jacobian = draw("badscale", T, P)
    lengths = np.linalg.norm(jacobian, axis=1)
    positive = np.abs(jacobian)
    # Without conflict: the shortest, the mean and the sum.
    found = rule("mgda")(positive)
    shortest = positive[np.argmin(lengths)]
    np.testing.assert_allclose(found, shortest, rtol=1e-9)
    for id in (*CONE, "mean"):
        found = rule(id)(positive)
        np.testing.assert_allclose(found, positive.mean(0), rtol=1e-12)
    for id in ("pcgrad", "gradvac"):
        found = rule(id)(positive)
        np.testing.assert_allclose(found, positive.sum(0), rtol=1e-12)
    # Exact for the short ones, too.
    weights = rule("nash_mtl_rare")(jacobian), rule("nash_mtl_rare").weights
    np.testing.assert_allclose(
        weights[1] * lengths / np.linalg.norm(weights[1] * lengths),
        _unit_weights(jacobian),
        rtol=1e-5,
    )


def _unit_weights(jacobian):
    """Weights of Nash-MTL times lengths: those of the unit gradients."""
    unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
    rule("nash_mtl_rare")(unit)
    weights = rule("nash_mtl_rare").weights
    return weights / np.linalg.norm(weights)


@pytest.mark.parametrize("case", RULES, ids=repr)
def test_float32_of_every_size_is_finite(case):
    single = compiled(case, T, P, dtype="float32")
    for scale in (1e-30, 1e-20, 1e-10, 1e10, 1e18):
        for kind in ("normal", "conflict", "stationary"):
            jacobian = scale * draw(kind, T, P)
            assert np.all(np.isfinite(single(jacobian))), (scale, kind)


@pytest.mark.parametrize("case", RULES, ids=repr)
@pytest.mark.parametrize("bad", [np.inf, np.nan, 3e38])
def test_rows_that_are_not_finite_are_left_out(case, bad):
    """3e38 is, but its square is not."""
    jacobian = draw("normal", T, P).astype("float32")
    losses = np.ones(T)
    rule = case.aggregator()
    live = np.array([True, False, True])
    expected = np.asarray(rule(jacobian, losses, live))
    jacobian[1, 2] = bad
    rule.reset_state()
    found = np.asarray(rule(jacobian, losses))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, expected)
    if case.is_gramian:
        rule.reset_state()
        with np.errstate(all="ignore"):
            gramian = jacobian @ jacobian.T
        weights = np.asarray(rule.weigh(gramian, losses))
        assert np.isfinite(weights).all()
        assert weights[1] == 0
