"""What papers claim of their rules, as certificates that need no peer."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from cases import AGGREGATOR, AGGREGATORS, AggregatorCase
from compiled import compiled
from jacobians import KINDS, WELL_POSED, draw, drawn
from scipy.optimize import minimize, nnls

from mtlkeras import aggregators

T, P = 3, 7


def plain(id):
    return compiled(AGGREGATOR[id], T, P)


@functools.cache
def large(id):
    """Eight tasks; fewer by `padded`."""
    return compiled(AGGREGATOR[id], 8, P)


def many(kinds, sizes=(2, 5, 8)):
    """Matrices of several numbers of tasks."""
    for num_tasks in sizes:
        for num_params in (4, 20):
            for kind in kinds:
                yield kind, draw(kind, num_tasks, num_params, seed=1)


def exact_weights(rule, jacobian):
    """Float64 weights: what `last_task_weights` holds is float32."""
    return np.asarray(rule.compute_weights(jacobian @ jacobian.T))


def units(jacobian):
    lengths = np.linalg.norm(jacobian, axis=1, keepdims=True)
    return jacobian / np.where(lengths > 0, lengths, 1.0)


# -- MGDA ---------------------------------------------------------------------


def test_mgda_is_optimal():
    for kind, jacobian in many(KINDS):
        direction = large("mgda").padded(jacobian)
        weights = large("mgda").weights[: len(jacobian)]
        assert np.all(weights >= 0)
        assert abs(np.sum(weights) - 1.0) < 1e-6
        gains, square = jacobian @ direction, direction @ direction
        # Of all points of the hull none is shorter: the duality gap.
        size = np.linalg.norm(jacobian) ** 2
        assert np.all(gains >= square - 1e-12 * size), kind
        assert np.linalg.norm(direction) <= (
            np.min(np.linalg.norm(jacobian, axis=1)) + 1e-8 * np.sqrt(size)
        )
        # Complementary slackness.
        slack = np.max(weights * (gains - square), initial=0.0)
        assert slack <= 1e-6 * size, kind


def test_mgda_of_two_tasks_has_a_closed_form():
    for kind, jacobian in many(["normal", "conflict", "midscale"], (2,)):
        (a, b), (_, c) = jacobian @ jacobian.T
        first = np.clip((c - b) / (a + c - 2 * b), 0, 1)
        wanted = np.array([first, 1 - first]) @ jacobian
        found = large("mgda").padded(jacobian)
        size = np.linalg.norm(jacobian)
        assert np.linalg.norm(found - wanted) <= 1e-12 * size, kind


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_normalized_mgda_is_mgda_of_normalized_gradients(normalization):
    rule = aggregators.MGDA(normalization)
    jacobian, losses = draw("midscale", T, P), np.array([0.1, 1.0, 7.0])
    divisors = {
        "l2": np.linalg.norm(jacobian, axis=1),
        "loss": losses,
        "loss+": losses * np.linalg.norm(jacobian, axis=1),
    }[normalization]
    wanted = plain("mgda")(jacobian / divisors[:, None])
    np.testing.assert_allclose(rule(jacobian, losses), wanted, rtol=1e-9)


# -- the dual cone ------------------------------------------------------------


def project_on_cone(vector, jacobian):
    """Nearest point without loss for any task, by non-negative least squares.

    `x = g + J' y` with the `y >= 0` that makes it shortest.
    """
    unit = units(jacobian)
    size = np.linalg.norm(vector)
    if size == 0:
        return vector
    return vector + size * unit.T @ nnls(unit.T, -vector / size)[0]


def assert_harmless(direction, jacobian, kind):
    gains = units(jacobian) @ direction
    assert np.all(gains >= -1e-10 * np.linalg.norm(jacobian)), kind


def test_upgrad_is_the_mean_of_projections():
    for kind, jacobian in many(KINDS):
        direction = large("upgrad").padded(jacobian)
        wanted = np.mean([project_on_cone(g, jacobian) for g in jacobian], 0)
        error = np.linalg.norm(direction - wanted)
        assert error <= 1e-12 * np.linalg.norm(jacobian), kind
        assert_harmless(direction, jacobian, kind)


def test_upgrad_is_linear_in_the_scales():
    rng = np.random.default_rng(0)
    for kind in ("normal", "conflict", "badscale"):
        jacobian = draw(kind, T, P)
        one, two = rng.uniform(0.1, 2.0, (2, T, 1))
        a, b = 0.3, 1.7
        whole = plain("upgrad")((a * one + b * two) * jacobian)
        parts = a * plain("upgrad")(one * jacobian)
        parts += b * plain("upgrad")(two * jacobian)
        size = np.linalg.norm(jacobian)
        assert np.linalg.norm(whole - parts) <= 1e-10 * size


def test_dual_proj_is_the_projection_of_the_mean():
    for kind, jacobian in many(KINDS):
        direction = large("dual_proj").padded(jacobian)
        wanted = project_on_cone(jacobian.mean(0), jacobian)
        error = np.linalg.norm(direction - wanted)
        assert error <= 1e-9 * np.linalg.norm(jacobian), kind
        assert_harmless(direction, jacobian, kind)


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "Mean"])
def test_preference_of_the_projected_gradients(name):
    preference = np.array([0.2, 1.3, 0.7])  # used as given: sums to 2.2
    jacobian = draw("conflict", T, P)
    direction = getattr(aggregators, name)(preference)(jacobian)
    projected = [project_on_cone(g, jacobian) for g in jacobian]
    wanted = {
        "Mean": preference @ jacobian,
        "UPGrad": preference @ projected,
        "DualProj": project_on_cone(preference @ jacobian, jacobian),
    }[name]
    np.testing.assert_allclose(direction, wanted, rtol=1e-9, atol=1e-9)


# -- CAGrad -------------------------------------------------------------------


def is_stationary(jacobian):
    """Whether no direction gains on all tasks."""
    shortest = large("mgda").padded(jacobian)
    return np.linalg.norm(shortest) <= 1e-7 * np.linalg.norm(jacobian)


def largest_gain(jacobian, radius):
    """The largest `min_i <g_i, d>` within `radius` around the mean gradient.

    By bisection on the gain. For a given gain the nearest point is a least
    distance problem, which one of non-negative least squares solves (Lawson
    and Hanson, chapter 23).
    """
    mean = jacobian.mean(0)

    def distance(gain):
        wanted = gain - jacobian @ mean
        if np.all(wanted <= 0):
            return 0.0
        system = np.vstack([jacobian.T, wanted])
        target = np.eye(len(system))[-1]
        multipliers, _ = nnls(system, target)
        rest = system @ multipliers - target
        if abs(rest[-1]) < 1e-12:
            return np.inf  # no point gains as much
        return np.linalg.norm(rest[:-1] / rest[-1])

    low = np.min(jacobian @ mean)
    high = low + radius * np.max(np.linalg.norm(jacobian, axis=1))
    for _ in range(100):
        middle = (low + high) / 2
        if distance(middle) <= radius:
            low = middle
        else:
            high = middle
    return low


@functools.cache
def cagrad(c):
    rule = aggregators.CAGrad(c)
    return compiled(AggregatorCase(rule, f"cagrad_{c}"), 8, P)


@pytest.mark.parametrize("c", [0.4, 2.0])
def test_cagrad_gains_as_much_as_can_be(c):
    for kind, jacobian in many(KINDS, (2, 3, 8)):
        mean = jacobian.mean(0)
        radius = c * np.linalg.norm(mean)
        size = np.linalg.norm(jacobian)
        direction = cagrad(c).padded(jacobian)
        shift = direction - mean
        gain = np.min(jacobian @ direction)
        # It lies in the ball ...
        assert np.linalg.norm(shift) <= radius + 1e-8 * size, kind
        # ... and no other point gains more: every point of the simplex gives
        # a bound, among them the one that our own shift comes from.
        weights = cagrad(c).weights[: len(jacobian)].astype("float64")
        parts = np.maximum(weights - 1 / len(jacobian), 0)
        if np.sum(parts) > 0 and not is_stationary(jacobian):
            combined = parts / np.sum(parts) @ jacobian
            bound = combined @ mean + radius * np.linalg.norm(combined)
            assert gain >= bound - 1e-5 * size**2, kind  # float32 weights
        if kind in ("normal", "conflict", "aligned", "duprow", "lowrank"):
            best = largest_gain(jacobian / size, radius / size) * size**2
            assert gain >= best - 1e-8 * size**2, kind


def certified_gap(weights, jacobian, c):
    """How far float64 weights are from optimal, relative to the size."""
    mean = jacobian.mean(0)
    radius = c * np.linalg.norm(mean)
    direction = weights @ jacobian
    parts = np.maximum(weights - 1 / len(jacobian), 0)
    combined = parts / np.sum(parts) @ jacobian
    bound = combined @ mean + radius * np.linalg.norm(combined)
    off = np.linalg.norm(direction - mean) - radius
    size = np.linalg.norm(jacobian)
    gap = bound - np.min(jacobian @ direction)
    return gap / size**2, off / size


@pytest.mark.parametrize("c", [0.1, 0.5, 1.0, 10.0])
def test_cagrad_has_no_duality_gap(c):
    solve = tf.function(aggregators.CAGrad(c).compute_weights, autograph=False)
    for kind in ("normal", "badscale", "conflict", "zerorow", "parallel"):
        for seed in range(3):
            jacobian = draw(kind, 5, 20, seed)
            weights = solve(tf.constant(jacobian @ jacobian.T)).numpy()
            gap, off = certified_gap(weights, jacobian, c)
            # Measured: 1e-10 and 4e-9 on badscale, else 1e-13.
            tolerance = 1e-8 if kind == "badscale" else 1e-11
            assert abs(off) <= tolerance, kind
            assert kind == "zerorow" or abs(gap) <= tolerance, kind


def test_cagrad_equals_a_general_solver():
    jacobian, c = draw("conflict", T, P), 0.5
    mean = jacobian.mean(0)
    radius = c * np.linalg.norm(mean)

    found = minimize(
        lambda x: -x[0],
        np.zeros(P + 1),
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda x: jacobian @ (mean + x[1:]) - x[0]},
            {"type": "ineq", "fun": lambda x: radius**2 - x[1:] @ x[1:]},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    direction = plain("cagrad")(jacobian)
    np.testing.assert_allclose(direction, mean + found.x[1:], atol=1e-5)


def test_cagrad_limits():
    for kind in WELL_POSED:
        jacobian = draw(kind, T, P)
        mean = aggregators.CAGrad(0.0)(jacobian)
        np.testing.assert_allclose(mean, jacobian.mean(0), rtol=1e-12)
        far = np.asarray(aggregators.CAGrad(1e3)(jacobian))
        shortest = plain("mgda")(jacobian)
        cosine = far @ shortest
        cosine /= np.linalg.norm(far) * np.linalg.norm(shortest)
        assert cosine >= 1 - 1e-4
    for kind, jacobian in many(KINDS):
        assert_harmless(cagrad(1.0).padded(jacobian), jacobian, kind)


def test_cagrad_of_stationary_rows_is_the_harmless_mean():
    for kind, jacobian in many(["stationary"], (3, 8)):
        wanted = large("dual_proj").padded(jacobian)
        error = np.linalg.norm(cagrad(2.0).padded(jacobian) - wanted)
        assert error <= 1e-7 * np.linalg.norm(jacobian), kind


@pytest.mark.parametrize(("rescale", "divisor"), [(1, 1.16), (2, 1.4)])
def test_cagrad_rescaled(rescale, divisor):
    jacobian = draw("normal", T, P)
    wanted = np.asarray(aggregators.CAGrad(0.4)(jacobian)) / divisor
    found = aggregators.CAGrad(0.4, rescale)(jacobian)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


# -- Nash-MTL and FairGrad ----------------------------------------------------

BALANCED = ["normal", "badscale", "midscale", "conflict", "aligned"]


def test_nash_mtl_solves_its_equations():
    rule = aggregators.NashMTL(max_norm=None)
    for kind, jacobian in drawn(T, P, [*BALANCED, "duprow"]).items():
        weights = exact_weights(rule, jacobian)
        products = weights * (jacobian @ (weights @ jacobian))
        np.testing.assert_allclose(products, 1.0, rtol=1e-9, err_msg=kind)
        square = np.sum((weights @ jacobian) ** 2)
        np.testing.assert_allclose(square, T, rtol=1e-9)


def test_nash_mtl_of_two_tasks_has_a_closed_form():
    rule = aggregators.NashMTL(max_norm=None)
    for jacobian in drawn(2, P, BALANCED).values():
        lengths = np.linalg.norm(jacobian, axis=1)
        cosine = jacobian[0] @ jacobian[1] / np.prod(lengths)
        np.testing.assert_allclose(
            exact_weights(rule, jacobian),
            1 / (lengths * np.sqrt(1 + cosine)),
            rtol=1e-9,
        )


def test_nash_mtl_shortens_what_is_longer_than_max_norm():
    jacobian = draw("normal", T, P)
    whole = exact_weights(aggregators.NashMTL(None), jacobian)
    short = exact_weights(aggregators.NashMTL(0.25), jacobian)
    np.testing.assert_allclose(short, whole * 0.25 / np.sqrt(T), rtol=1e-9)
    long = exact_weights(aggregators.NashMTL(5.0), jacobian)
    np.testing.assert_allclose(long, whole, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_solves_its_equations(alpha):
    rule = aggregators.FairGrad(alpha)
    for kind, jacobian in drawn(T, P, BALANCED).items():
        weights = exact_weights(rule, jacobian)
        assert np.all(weights > 0)
        if kind == "badscale":
            continue  # J' w in NumPy loses the shortest row
        gains = jacobian @ (weights @ jacobian)
        np.testing.assert_allclose(
            gains * weights ** (1 / alpha), 1.0, rtol=1e-7, err_msg=kind
        )


def test_fairgrad_of_a_large_alpha_gives_equal_gains():
    jacobian = draw("normal", T, P)
    inverse = np.linalg.solve(jacobian @ jacobian.T, np.ones(T))
    assert np.all(inverse > 0), "else they would not be equal"
    weights = exact_weights(aggregators.FairGrad(1e3), jacobian)
    gains = jacobian @ (weights @ jacobian)
    assert np.max(gains) / np.min(gains) < 1.01


# -- directions by projections ------------------------------------------------


def test_imtl_g_projects_alike_on_all_gradients():
    rule = aggregators.IMTLG()
    for kind, jacobian in drawn(T, P, [*BALANCED, "duprow"]).items():
        weights = exact_weights(rule, jacobian)
        assert abs(np.sum(weights) - 1) < 1e-12
        direction = weights @ jacobian
        projections = units(jacobian) @ direction
        spread = np.ptp(projections) / np.linalg.norm(direction)
        assert spread <= 1e-8, kind


def test_imtl_g_of_two_tasks_has_a_closed_form():
    for jacobian in drawn(2, P, ["normal", "conflict", "midscale"]).values():
        difference = units(jacobian)[0] - units(jacobian)[1]
        second = jacobian[0] @ difference
        second /= (jacobian[0] - jacobian[1]) @ difference
        np.testing.assert_allclose(
            exact_weights(aggregators.IMTLG(), jacobian)[1], second, rtol=1e-10
        )


def test_aligned_mtl_has_equal_singular_values():
    for scale in ("min", "median", "rmse"):
        for kind in ("normal", "conflict", "midscale", "zerorow"):
            jacobian = draw(kind, T, P)
            aligned = np.stack(
                [
                    np.asarray(aggregators.AlignedMTL(scale, one)(jacobian))
                    for one in np.eye(T)
                ]
            )
            before = np.linalg.svd(jacobian, compute_uv=False)
            before = before[before > 1e-9]
            after = np.linalg.svd(aligned, compute_uv=False)
            wanted = {
                "min": before[-1],
                "median": before[len(before) // 2],
                "rmse": np.sqrt(np.mean(before**2)),
            }[scale]
            np.testing.assert_allclose(
                after[: len(before)], wanted, rtol=1e-6, err_msg=kind
            )


def test_con_fig_has_equal_positive_cosines():
    for kind in [*BALANCED, "duprow"]:
        jacobian = draw(kind, T, P)
        direction = plain("con_fig")(jacobian)
        cosines = units(jacobian) @ direction / np.linalg.norm(direction)
        assert np.ptp(cosines) <= 1e-8, kind
        assert np.all(cosines > 0)
        unit = direction / np.linalg.norm(direction)
        length = np.sum(jacobian @ unit)
        np.testing.assert_allclose(np.linalg.norm(direction), length, rtol=1e-8)


def test_con_fig_cosines_follow_the_preference():
    preference = np.array([1.0, 2.0, 0.5])
    jacobian = draw("normal", T, P)
    direction = aggregators.ConFIG(preference)(jacobian)
    cosines = units(jacobian) @ np.asarray(direction)
    ratios = cosines / preference
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)


# -- surgery ------------------------------------------------------------------


def test_pcgrad_of_two_tasks():
    for kind in ("normal", "conflict", "midscale"):
        for seed in range(3):
            jacobian = draw(kind, 2, P, seed)
            direction = plain("pcgrad").padded(jacobian)
            weights = plain("pcgrad").weights[:2]
            size = np.linalg.norm(jacobian) ** 2
            inner = jacobian[0] @ jacobian[1]
            wanted = 1 - min(inner, 0) / np.sum(jacobian**2, 1)
            np.testing.assert_allclose(weights, wanted, rtol=1e-6)
            if inner < 0:
                for i in range(2):
                    part = (
                        jacobian[i]
                        - inner / np.sum(jacobian[1 - i] ** 2) * jacobian[1 - i]
                    )
                    assert abs(part @ jacobian[1 - i]) <= 1e-10 * size
                assert np.all(jacobian @ direction >= -1e-10 * size)
            else:
                np.testing.assert_allclose(direction, jacobian.sum(0))
            twice = 2 * plain("upgrad").padded(jacobian)
            error = np.linalg.norm(direction - twice)
            assert error <= 1e-9 * np.sqrt(size)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_which_rules_are_blind_to_the_scale_of_a_loss(scale):
    jacobian, losses = draw("conflict", T, P), np.array([0.5, 1.0, 2.0])
    factors = np.array([1.0, scale, 1.0])
    blind = ["imtl_g", "nash_mtl", "con_fig", "normalized", "mgda_l2"]
    sighted = ["sum", "pcgrad_ascending", "cagrad", "mgda", "upgrad"]
    for id in [*blind, "db_mtl", *sighted]:
        rule = plain(id)
        before = rule(jacobian, losses)
        after = rule(factors[:, None] * jacobian, factors * losses)
        if id == "con_fig":
            before, after = (d / np.linalg.norm(d) for d in (before, after))
        cosine = before @ after / np.linalg.norm(before)
        cosine /= np.linalg.norm(after)
        if id in sighted:
            assert cosine < 1 - 1e-4, id
        else:
            assert cosine >= 1 - 1e-10, id


@pytest.mark.parametrize(
    "case", [case for case in AGGREGATORS if case.never_harms], ids=repr
)
def test_no_task_loses(case):
    for kind, jacobian in drawn(T, P).items():
        # Its direction is 0 to the rounding of half the digits.
        tolerance = 1e-5 if kind in ("opposite", *case.ill_posed) else 1e-9
        direction = plain(case.id)(jacobian)
        gains = units(jacobian) @ direction
        size = max(np.linalg.norm(jacobian), np.linalg.norm(direction))
        assert np.all(gains >= -tolerance * size), kind
