"""Gradient descent on quadratics whose paths and ends are known.

From section 5 of https://arxiv.org/abs/2406.16232. One loop per rule, in one
compiled function.
"""

import numpy as np
import pytest
import tensorflow as tf

from mtlkeras import aggregators

RATE = 0.02


def descend(rule, losses_and_jacobian, start, steps):
    """Where `steps` steps lead, and in how many of them a loss rose."""
    rule = aggregators.get(rule)
    # State is made outside of the loop.
    rule.build((2, 2))

    def direction(x):
        jacobian = losses_and_jacobian(x)[1]
        weights = rule.compute_weights(jacobian @ tf.transpose(jacobian))
        return tf.linalg.matvec(jacobian, weights, transpose_a=True)

    def step(_, x, before, rises):
        x = x - RATE * direction(x)
        after = losses_and_jacobian(x)[0]
        # Not by rounding alone.
        rose = tf.reduce_any(after > before + 1e-12)
        return _ + 1, x, after, rises + tf.cast(rose, tf.int32)

    @tf.function(jit_compile=True, autograph=False)
    def run(x):
        return tf.while_loop(
            lambda step, *_: step < steps,
            step,
            (0, x, losses_and_jacobian(x)[0], 0),
        )

    _, x, _, rises = run(tf.constant(start, "float64"))
    return x.numpy(), int(rises)


# -- one squared coordinate per task: gradients are orthogonal ----------------


def squares(x):
    return x * x, tf.linalg.diag(2 * x)


def test_squares_keep_what_a_rule_keeps():
    # MGDA: x_1^2 - x_2^2, up to the length of a step.
    x, _ = descend("mgda", squares, [3.0, 2.0], 1000)
    np.testing.assert_allclose(x, [2.2253, 0.0], atol=2e-4)
    # |x_1| - |x_2|, where the direction is the sum of unit gradients.
    for rule in ("imtl_g", "aligned_mtl"):
        # Later `aligned_mtl` drops the second gradient, a 1e-8 of the first.
        x, _ = descend(rule, squares, [3.0, 2.0], 400)
        np.testing.assert_allclose(x[0] - x[1], 1.0, atol=1e-6)
    rule = aggregators.NashMTL()
    x, _ = descend(rule, squares, [3.0, 2.0], 90)
    np.testing.assert_allclose(x[0] - x[1], 1.0, atol=1e-6)
    assert x[1] < 1.0


@pytest.mark.parametrize("rule", ["mean", "sum", "pcgrad", "upgrad"])
def test_squares_are_minimised_by_the_others(rule):
    x, rises = descend(rule, squares, [3.0, 2.0], 1000)
    np.testing.assert_allclose(x, 0.0, atol=1e-7)
    assert rises == 0


# -- two stretched bowls ------------------------------------------------------

ANGLE = np.pi / 16
TURN = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
)
BOWLS = np.stack(
    [
        TURN @ np.diag([1.0, 0.01]) @ TURN.T,
        TURN.T @ np.diag([3.0, 0.01]) @ TURN,
    ]
)
CENTRES = np.array([[1.0, 0.0], [-1.0, 0.0]])


def bowls(x):
    away = x - CENTRES
    slopes = tf.linalg.matvec(tf.constant(BOWLS), away)
    return tf.reduce_sum(away * slopes, 1), 2 * slopes


def pareto(weight):
    """The minimum of a weighted sum of the two losses."""
    parts = np.array([weight, 1 - weight])[:, None, None] * BOWLS
    return np.linalg.solve(parts.sum(0), np.einsum("kij,kj->i", parts, CENTRES))


def distance_from_pareto_set(x):
    grid = np.array([pareto(w) for w in np.linspace(0, 1, 20_001)])
    return np.min(np.linalg.norm(grid - x, axis=1))


def test_bowls_are_those_of_the_paper():
    losses, jacobian = bowls(tf.zeros(2, "float64"))
    np.testing.assert_allclose(losses, [0.96232, 2.88620], atol=1e-5)
    first, second = jacobian.numpy()
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    np.testing.assert_allclose(cosine, -0.9248912, atol=1e-6)
    np.testing.assert_allclose(pareto(0.5), [-0.074933, 4.273768], atol=1e-6)


ENDS = {
    "mgda": (0.3712, 2.7938),
    "pcgrad": (-0.1809, 3.8916),
    "upgrad": (-0.1804, 3.8935),
    "imtl_g": (0.0936, 3.9777),
    "mean": (-0.074933, 4.273768),
}


@pytest.mark.parametrize("rule", ENDS)
def test_bowls_end_on_the_pareto_set(rule):
    x, rises = descend(rule, bowls, [0.0, 0.0], 20_000)
    np.testing.assert_allclose(x, ENDS[rule], atol=2e-4)
    assert distance_from_pareto_set(x) < 1e-3
    # All but the mean let no loss rise.
    assert rises > 5000 if rule == "mean" else rises == 0
