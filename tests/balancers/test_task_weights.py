import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras.balancers import TaskWeights

LOSSES = np.array([1.0, 2.0, 4.0])
EVERY = np.ones(3, bool)


def bound(*arguments):
    balancer = TaskWeights(*arguments)
    balancer.bind(["left", "middle", "right"])
    return balancer


def weights_of(balancer):
    return keras.ops.convert_to_numpy(balancer.compute_weights(LOSSES)).tolist()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, [1, 1, 1]),
        (0.5, [0.5, 0.5, 0.5]),
        ([1, 2, 3], [1, 2, 3]),
        (np.array([1, 2, 3]), [1, 2, 3]),
        ({"right": 0.25}, [1, 1, 0.25]),
        ({"left": 0, "middle": -1}, [0, -1, 1]),
    ],
)
def test_initial_weights(given, wanted):
    balancer = bound(given)
    assert weights_of(balancer) == wanted
    # From the first measured loss on, whatever the others are.
    used = balancer.measure(LOSSES, np.array([True, False, False]))
    assert float(used[0]) == wanted[0]
    assert balancer.last_task_weights[0] == wanted[0]


def test_assign():
    balancer = bound([1.0, 2.0, 3.0])
    balancer.assign({"middle": 0.5})
    assert weights_of(balancer) == [1, 0.5, 3]
    balancer.assign({"left": 7.0, "right": 0.0})
    assert weights_of(balancer) == [7, 0.5, 0]
    balancer.assign([4.0, 5.0, 6.0])
    assert weights_of(balancer) == [4, 5, 6]
    balancer.assign(2.0)
    assert weights_of(balancer) == [2, 2, 2]
    # The config is that of a new object, as before its first batch.
    assert balancer.get_config()["initial_weights"] == [1, 2, 3]
    balancer.reset_state()
    assert weights_of(balancer) == [1, 2, 3]


def test_assign_reaches_a_graph_that_has_been_traced():
    balancer = bound()
    measure = tf.function(balancer.measure, autograph=False)
    arguments = tf.constant(LOSSES), tf.constant(EVERY)
    np.testing.assert_array_equal(measure(*arguments), [1, 1, 1])
    balancer.assign({"right": 0.5})
    np.testing.assert_array_equal(measure(*arguments), [1, 1, 0.5])
    assert measure.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"depth": 1.0}, r"must be tasks.*'right'\].*unknown.*\['depth'\]"),
        ([1.0, 2.0], r"each of the 3 tasks.*2 numbers"),
        ({"left": "much"}, r"must be a number.*'much'"),
        ({"left": float("nan")}, r"must be a number.*nan"),
        (None, r"needs weights.*weights=None"),
    ],
)
def test_assign_refuses(weights, message):
    balancer = bound([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=f"(?s){message}"):
        balancer.assign(weights)
    assert weights_of(balancer) == [1, 2, 3]


def test_assign_needs_tasks():
    with pytest.raises(ValueError, match="in force in a model, or call `bind"):
        TaskWeights().assign(0.5)
    unnamed = TaskWeights()
    unnamed.ensure_built(2)
    unnamed.assign([0.5, 1.0])
    with pytest.raises(ValueError, match=r"needs names.*\{'left': 1.0\}"):
        unnamed.assign({"left": 1.0})
