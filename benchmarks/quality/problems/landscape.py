"""The two-objective landscape of CAGrad, Nash-MTL and FAMO.

Two variables, two losses of which the first is scaled, and five starts. It was
made so that the sum of the losses gets stuck; how much of that is the learning
rate's doing is what the sweep shows.
"""

import functools

import numpy as np
import tensorflow as tf

from benchmarks.quality.problems.analytic import AnalyticProblem

STARTS = [[-8.5, 7.5], [0.0, 0.0], [9.0, 9.0], [-7.5, -0.5], [9.0, -1.0]]


class Landscape(AnalyticProblem):
    """Distance from the front in loss space, from each start.

    Args:
        scale: Of the first loss while training; 0.1 in Nash-MTL and FAMO.
        solved_below: Distance at which a start counts as solved.
    """

    positive = False

    def __init__(self, scale=0.1, solved_below=0.05):
        super().__init__()
        self.scale = scale
        self.solved_below = solved_below
        self.losses = {
            "first": lambda point: self.scale * both_losses(point)[0],
            "second": lambda point: both_losses(point)[1],
        }
        self.metrics = {
            "solved": {"task": None, "higher_is_better": True},
            "distance": {"task": None, "higher_is_better": False},
            "first": {"task": "first", "higher_is_better": False},
            "second": {"task": "second", "higher_is_better": False},
            "x1": {"task": None, "higher_is_better": False},
            "x2": {"task": None, "higher_is_better": False},
        }

    def start(self, setting):
        return np.array(STARTS[setting["start"]])

    def measure(self, point):
        first, second = (v.numpy() for v in both_losses(tf.constant(point)))
        ends = front()
        gap = np.maximum(first - ends[:, 0], second - ends[:, 1]).min()
        return {
            "solved": float(gap < self.solved_below),
            "distance": gap,
            "first": first,
            "second": second,
            "x1": point[0],
            "x2": point[1],
        }


def both_losses(x):
    """The two losses of points `[..., 2]`, the first one not scaled.

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
    x2 = np.linspace(-9.0, -8.0, 2001)
    for w in np.linspace(0, 1, 401):
        grid = np.stack([np.full_like(x2, 14 * w - 7), x2], -1)
        first, second = (v.numpy() for v in both_losses(tf.constant(grid)))
        best = np.argmin(w * first + (1 - w) * second)
        points.append((first[best], second[best]))
    return np.array(points)
