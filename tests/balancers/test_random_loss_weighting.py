import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from mtlkeras.balancers import RandomLossWeighting

T, BATCHES = 4, 3000


def drawn(count=BATCHES, num_tasks=T, **arguments):
    """Weights of the first batches, `[count, num_tasks]`."""
    balancer = RandomLossWeighting(**arguments)
    balancer.bind([f"task_{k}" for k in range(num_tasks)])
    every = tf.ones([num_tasks], "bool")

    def batch(_):
        weights = balancer.measure(tf.ones([num_tasks]), every)
        balancer.finish_batch(every)
        return weights

    @tf.function(autograph=False)
    def run():
        return tf.map_fn(
            batch,
            tf.range(count),
            parallel_iterations=1,
            fn_output_signature="float64",
        )

    return run().numpy()


@pytest.fixture(scope="module", params=["normal", "dirichlet"])
def many(request):
    return request.param, drawn(distribution=request.param, seed=7)


def test_weights_are_positive_and_have_the_sum(many):
    assert np.all(many[1] > 0)
    np.testing.assert_allclose(many[1].sum(1), 1.0, rtol=1e-12)
    for total in (4.0, 0.5):
        few = drawn(5, distribution=many[0], seed=7, total=total)
        np.testing.assert_allclose(few, total * many[1][:5], rtol=1e-12)


def test_mean_weights_are_equal(many):
    weights = many[1]
    error = weights.std(0) / np.sqrt(BATCHES)
    assert np.all(np.abs(weights.mean(0) - 1 / T) < 3.5 * error)


def test_batches_are_independent(many):
    weights = many[1] - many[1].mean(0)
    for k in range(T):
        correlation = np.corrcoef(weights[1:, k], weights[:-1, k])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(BATCHES)


def test_distribution(many):
    kind, weights = many
    if kind == "dirichlet":  # its marginals are beta distributions
        result = stats.kstest(weights[:, 0], stats.beta(1, T - 1).cdf)
    else:  # logarithms of ratios are differences of normals
        ratios = np.log(weights[:, 0] / weights[:, 1]) / np.sqrt(2)
        result = stats.kstest(ratios, stats.norm.cdf)
    assert result.pvalue > 1e-3


def test_seeds():
    first, again = drawn(4, seed=1), drawn(4, seed=1)
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == drawn(4, seed=2))


def test_one_draw_per_batch():
    balancer = RandomLossWeighting()
    balancer.bind(["a", "b"])
    every = np.array([True, True])
    first = balancer.measure(np.ones(2), every)
    alone = balancer.measure(np.ones(2), np.array([False, True]))
    np.testing.assert_array_equal(alone, first)
    # Also where no task has labels.
    balancer.finish_batch(np.array([False, False]))
    assert not np.any(balancer.measure(np.ones(2), every) == first)
