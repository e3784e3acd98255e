"""Two pairs of quadratics with known Pareto sets (the UPGrad paper's).

`"orthogonal"`: x1^2 and x2^2. Their gradients never conflict, the one Pareto
optimum is 0, and both axes are weakly stationary: rules that look for balance
stop there.

`"conflicting"`: (x - v)^T A (x - v) with ill-conditioned, turned A. The Pareto
set is a curve in closed form.
"""

import numpy as np
import tensorflow as tf

from benchmarks.quality.problems.analytic import AnalyticProblem

ANGLE = np.pi / 16
TURN = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
)
MATRICES = (
    TURN @ np.diag([1.0, 0.01]) @ TURN.T,
    TURN.T @ np.diag([3.0, 0.01]) @ TURN,
)
CENTRES = (np.array([1.0, 0.0]), np.array([-1.0, 0.0]))


class Quadratics(AnalyticProblem):
    """Distance from the Pareto optimal values, under plain gradient descent.

    Args:
        pair: `"orthogonal"` or `"conflicting"`.
        solved_below: Distance at which a start counts as solved.
    """

    optimizer = {"class_name": "SGD", "config": {}}

    def __init__(self, pair="conflicting", solved_below=1e-3):
        super().__init__()
        self.pair = pair
        self.solved_below = solved_below
        values = {"orthogonal": squares, "conflicting": turned}[pair]
        self.losses = {
            "first": lambda point: values(point)[0],
            "second": lambda point: values(point)[1],
        }
        self.values = values
        self.metrics = {
            "solved": {"task": None, "higher_is_better": True},
            "distance": {"task": None, "higher_is_better": False},
            "first": {"task": "first", "higher_is_better": False},
            "second": {"task": "second", "higher_is_better": False},
            "x1": {"task": None, "higher_is_better": False},
            "x2": {"task": None, "higher_is_better": False},
        }

    def start(self, setting):
        return np.array(setting["start"], "float64")

    def measure(self, point):
        found = np.array([v.numpy() for v in self.values(tf.constant(point))])
        gap = (found - self.front()).max(-1).min()
        return {
            "solved": float(gap < self.solved_below),
            "distance": gap,
            "first": found[0],
            "second": found[1],
            "x1": point[0],
            "x2": point[1],
        }

    def front(self):
        """Pareto optimal values, `[num_points, 2]`."""
        if self.pair == "orthogonal":
            return np.zeros((1, 2))
        return np.array(
            [
                [quadratic(k, optimum(weight)) for k in (0, 1)]
                for weight in np.linspace(0, 1, 2001)
            ]
        )


def squares(point):
    return point[0] ** 2, point[1] ** 2


def turned(point):
    return tuple(
        tf.einsum("i,ij,j->", point - centre, matrix, point - centre)
        for matrix, centre in zip(MATRICES, CENTRES, strict=True)
    )


def quadratic(k, point):
    difference = point - CENTRES[k]
    return difference @ MATRICES[k] @ difference


def optimum(weight):
    """The minimiser of the weighted sum."""
    first, second = weight * MATRICES[0], (1 - weight) * MATRICES[1]
    return np.linalg.solve(
        first + second, first @ CENTRES[0] + second @ CENTRES[1]
    )
