"""The two-objective landscape of the aggregator papers (CAGrad, Nash-MTL).

Two variables, two losses, and five starts from which some methods never get
to the Pareto front.
"""

import functools

import numpy as np
import tensorflow as tf

STARTS = [[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]]
SCALE = 0.1  # of the first loss


def losses(x):
    """`(L1 / SCALE, L2)` of points `[..., 2]`.

    `maximum` and not `relu`: at (0, 0) both gates sit on their tie, where
    relu's gradient is 0 and the start would never move.
    """
    x1, x2 = x[..., 0], x[..., 1]

    def well(a):
        return tf.math.log(tf.maximum(tf.abs(a), 5e-6)) + 6

    f1 = well(0.5 * (-x1 - 7) - tf.tanh(-x2))
    f2 = well(0.5 * (-x1 + 3) + tf.tanh(-x2) + 2)
    g1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    g2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    c1 = tf.maximum(tf.tanh(x2 / 2), tf.zeros_like(x2))
    c2 = tf.maximum(tf.tanh(-x2 / 2), tf.zeros_like(x2))
    return f1 * c1 + g1 * c2, f2 * c1 + g2 * c2


@functools.cache
def front():
    """Minimisers of w L1 + (1 - w) L2 on x2 < 0, where x1 is 14 w - 7."""
    points = []
    for w in np.linspace(0, 1, 401):
        x1, low, high = 14 * w - 7, -9.0, -8.0
        x2 = np.linspace(low, high, 2001)
        grid = tf.constant(np.stack([np.full_like(x2, x1), x2], -1))
        first, second = (value.numpy() for value in losses(grid))
        best = np.argmin(w * first + (1 - w) * second)
        points.append((first[best], second[best], x2[best]))
    return np.array(points)


def distances(points):
    """How far each point is from the front, in loss space."""
    first, second = (v.numpy() for v in losses(tf.constant(points)))
    ends = front()[:, :2]
    gaps = np.maximum(first[:, None] - ends[:, 0], second[:, None] - ends[:, 1])
    return gaps.min(-1)
