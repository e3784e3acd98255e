"""Gradients of all heads at once, against NumPy one by one."""

import numpy as np
import pytest
import tensorflow as tf

from mtlkeras.backend.tensorflow import head_gradients
from mtlkeras.backend.tensorflow.head_gradients import HeadGradients

# Heads alike, one with a layer more, one that is large, one without weights.
SHAPES = {
    "a": {"kernel_a": (4, 3), "bias_a": (3,)},
    "b": {"kernel_b": (4, 3), "bias_b": (3,), "extra_b": (4, 3)},
    "c": {"kernel_c": (4, 50), "bias_c": (50,)},
    "d": {},
    "e": {"kernel_e": (4, 3), "scale_e": ()},
}
BAD = [np.nan, np.inf, -np.inf]


def make(dtype="float32"):
    rng = np.random.default_rng(0)
    return [
        {
            key: rng.normal(size=shape).astype(dtype)
            for key, shape in own.items()
        }
        for own in SHAPES.values()
    ]


def run(taken, live):
    @tf.function(autograph=False)
    def both(taken, live):
        heads = HeadGradients(taken)
        return heads.finite(), heads.where(live)

    return both(taken, tf.constant(live))


@pytest.fixture(autouse=True, params=[2**16, 20, 0])
def stacked_up_to(request, monkeypatch):
    """Everything, or what is small, or nothing is stacked."""
    monkeypatch.setattr(head_gradients, "STACKED_UP_TO", request.param)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_finite_by_task(bad, dtype):
    for task, own in enumerate(make()):
        for key in own:
            taken = make(dtype)
            flat = np.atleast_1d(taken[task][key]).ravel()
            flat[-1] = bad
            taken[task][key] = flat.reshape(np.shape(taken[task][key]))
            finite, _ = run(taken, [True] * 5)
            assert finite.numpy().tolist() == [t != task for t in range(5)]


def test_huge_is_finite():
    """Though its square is not; beside a task that really is not."""
    taken = make()
    for own in taken:
        for key in own:
            own[key] = own[key] * np.float32(1e30)
    assert run(taken, [True] * 5)[0].numpy().all()
    taken[1]["bias_b"][0] = np.nan
    finite, _ = run(taken, [True] * 5)
    assert finite.numpy().tolist() == [True, False, True, True, True]


@pytest.mark.parametrize(
    "live", [[True] * 5, [False] * 5, [True, False, False, True, False]]
)
def test_where(live):
    """Bit for bit, also 0 in place of what is not finite."""
    taken = make()
    taken[1]["kernel_b"][0] = np.nan
    if live[1]:
        taken[1]["kernel_b"][0] = 1.0
    _, found = run(taken, live)
    keys = [key for own in taken for key in own]
    assert sorted(found) == sorted(keys)
    for flag, own in zip(live, taken, strict=True):
        for key, gradient in own.items():
            expected = gradient if flag else np.zeros_like(gradient)
            np.testing.assert_array_equal(found[key].numpy(), expected)


def test_sparse_gradients_become_dense():
    rows = tf.IndexedSlices(tf.ones([1, 3]), [2], [4, 3])
    for bad in (1.0, np.nan):
        found = HeadGradients(
            [{"kernel": rows}, {"other": tf.fill([4, 3], bad)}]
        )
        assert found.finite().numpy().tolist() == [True, bad == 1.0]
        dense = found.where(tf.constant([True, False]))
        np.testing.assert_array_equal(
            dense["kernel"].numpy(), np.eye(4)[2][:, None] * np.ones(3)
        )
        assert not dense["other"].numpy().any()


def test_no_heads_at_all():
    heads = HeadGradients([{}, {}])
    assert heads.finite().numpy().tolist() == [True, True]
    assert heads.where(tf.constant([True, True])) == {}
