"""Against the definition, one operation after the other, in NumPy."""

import numpy as np
import pytest
from balancing import Balancing, losses_of

from mtlkeras.balancers import SLAW


def definition(losses, decay, floor):
    """Weights after every batch: moments of all losses so far.

    Args:
        losses: Array `[num_batches, num_tasks]`; NaN where not measured.
    """
    num_tasks = losses.shape[1]
    threshold = 1 / (1 - decay)
    weights = []
    for end in range(1, len(losses) + 1):
        deviations = []
        for k in range(num_tasks):
            seen = losses[:end, k]
            seen = seen[~np.isnan(seen)].astype("longdouble")
            first = second = np.longdouble(0)
            for n, loss in enumerate(seen, 1):
                if n <= threshold:  # a plain average
                    first = (first * (n - 1) + loss) / n
                    second = (second * (n - 1) + loss**2) / n
                else:
                    first = decay * first + (1 - decay) * loss
                    second = decay * second + (1 - decay) * loss**2
            deviation = np.sqrt(np.maximum(second - first**2, 0))
            deviations.append(
                np.maximum(deviation, floor) if len(seen) > 1 else np.nan
            )
        parts = 1 / np.array(deviations, "float64")
        known = not np.any(np.isnan(parts))
        weights.append(
            num_tasks * parts / parts.sum() if known else np.ones(num_tasks)
        )
    return np.array(weights)


@pytest.mark.parametrize(
    ("decay", "floor"), [(0.99, 1e-5), (0.8, 1e-5), (0.9, 0.3), (0.0, 0.1)]
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_weights_are_those_of_the_definition(decay, floor, one_by_one):
    batches = [(b[0], b[1]) for b in losses_of(3, count=30, seed=3)]
    recorded = np.array([np.where(m, loss, np.nan) for loss, m in batches])
    balancer = SLAW(decay, floor)
    balancer.bind(["a", "b", "c"])
    balancing = Balancing(balancer, jit_compile=False)
    wanted = definition(recorded, decay, floor)
    last = []
    for batch in batches:
        balancing.batch(*batch, one_by_one=one_by_one)
        last.append(balancer.last_task_weights)
    np.testing.assert_allclose(last, wanted, rtol=1e-9)
    assert np.all(wanted[0] == 1)
    np.testing.assert_allclose(wanted.sum(1), 3)


def test_long_average_ends_after_the_first_steps():
    """At 0.99 the rates are 1, 1/2, ..., 1/100, 1/100, ..."""
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.5, 2, (150, 2)) * [1.0, 30.0]
    balancer = SLAW()
    balancer.bind(["a", "b"])
    Balancing(balancer, jit_compile=False).run([(row,) for row in losses])
    wanted = definition(losses, 0.99, 1e-5)[-1]
    np.testing.assert_allclose(balancer.last_task_weights, wanted, rtol=1e-9)


def test_losses_that_vary_little_beside_their_size():
    """A difference of moments would be rounding error, or negative."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(40, 2))
    balancer = SLAW(floor=1e-12)
    balancer.bind(["a", "b"])
    losses = 1e6 + noise * [1e-3, 1e-4]
    Balancing(balancer, jit_compile=False).run([(row,) for row in losses])
    deviations = losses.std(0)
    wanted = 2 / deviations / np.sum(1 / deviations)
    np.testing.assert_allclose(balancer.last_task_weights, wanted, rtol=1e-6)


def test_constant_losses_have_the_floor():
    balancer = SLAW(floor=0.25)
    balancer.bind(["constant", "varies"])
    balancer_run = Balancing(balancer)
    balancer_run.run([([3.0, 1.0],), ([3.0, 2.0],)])  # deviations 0 and 0.5
    np.testing.assert_allclose(
        balancer.last_task_weights, [4 / 3, 2 / 3], rtol=1e-12
    )
