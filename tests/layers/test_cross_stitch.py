"""The mixing matrix, against NumPy."""

import keras
import numpy as np
import pytest

from mtlkeras.layers import CrossStitch


def arrays(count, shape=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for _ in range(count)]


def with_matrix(layer, inputs, seed=1):
    """The layer, built, with a random matrix, and that matrix."""
    layer(inputs)
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=layer.mixing.shape)
    layer.mixing.assign(matrix)
    return layer, matrix


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 3, 5, 6)])
def test_equals_numpy(shape):
    inputs = arrays(3, shape)
    layer, matrix = with_matrix(CrossStitch(), inputs)
    assert matrix.shape == (3, 3)
    for i, output in enumerate(layer(inputs)):
        expected = sum(matrix[i, j] * inputs[j] for j in range(3))
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_per_channel_equals_numpy():
    inputs = arrays(2)
    layer, matrix = with_matrix(CrossStitch(per_channel=True), inputs)
    assert matrix.shape == (2, 2, 6)
    for i, output in enumerate(layer(inputs)):
        expected = matrix[i, 0] * inputs[0] + matrix[i, 1] * inputs[1]
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_subspaces_equal_numpy(per_channel):
    inputs = arrays(2, (4, 3, 6))
    layer, matrix = with_matrix(CrossStitch(0.9, per_channel, 3), inputs)
    assert matrix.shape[:2] == (6, 6)
    parts = [p for x in inputs for p in np.split(x, 3, axis=-1)]
    mixed = [sum(matrix[i, j] * parts[j] for j in range(6)) for i in range(6)]
    for i, output in enumerate(layer(inputs)):
        expected = np.concatenate(mixed[3 * i : 3 * i + 3], axis=-1)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_start():
    layer = CrossStitch(self_weight=0.8)
    layer.build([(None, 4)] * 3)
    np.testing.assert_allclose(
        layer.mixing, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    )
    inputs = arrays(3)
    for x, output in zip(inputs, CrossStitch(1.0)(inputs), strict=True):
        np.testing.assert_array_equal(output, x)


def test_a_dict_is_mixed_in_the_order_of_its_keys():
    first, second = arrays(2)
    layer, matrix = with_matrix(
        CrossStitch(), {"zoo": second, "ant": first}, seed=3
    )
    outputs = layer({"zoo": second, "ant": first})
    assert set(outputs) == {"zoo", "ant"}
    expected = matrix[0, 0] * first + matrix[0, 1] * second
    np.testing.assert_allclose(outputs["ant"], expected, rtol=1e-5, atol=1e-5)
    expected = matrix[1, 0] * first + matrix[1, 1] * second
    np.testing.assert_allclose(outputs["zoo"], expected, rtol=1e-5, atol=1e-5)


def test_every_stream_keeps_its_own_mask():
    inputs = {
        name: keras.ops.convert_to_tensor(x)
        for name, x in zip("abc", arrays(3, (2, 3, 4)), strict=True)
    }
    masks = {
        "a": np.array([[True, True, False], [True, False, False]]),
        "c": np.array([[True, False, False], [True, True, True]]),
    }
    for name, mask in masks.items():
        inputs[name]._keras_mask = keras.ops.convert_to_tensor(mask)
    outputs = CrossStitch()(inputs)
    for name, mask in masks.items():
        np.testing.assert_array_equal(outputs[name]._keras_mask, mask)
    assert getattr(outputs["b"], "_keras_mask", None) is None


@pytest.mark.parametrize(
    "shapes", [(None, 4), [(None, 4)], [(None, 4), (None, 5)]]
)
def test_inputs_that_cannot_be_mixed(shapes):
    with pytest.raises(ValueError, match="at least two inputs that have one"):
        CrossStitch().build(shapes)


def test_subspaces_that_do_not_fit():
    with pytest.raises(ValueError, match="divide the number of channels, 6"):
        CrossStitch(num_subspaces=4).build([(None, 6)] * 2)
    with pytest.raises(ValueError, match="must be a positive integer"):
        CrossStitch(num_subspaces=0)
