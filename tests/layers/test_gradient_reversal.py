"""Forward the same bits, backward `-factor` times."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import regression_data

import mtlkeras
from mtlkeras.layers import GradientReversal


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 7.0])
def test_same_bits_forward_and_minus_factor_backward(factor, dtype):
    x = np.random.default_rng(0).normal(size=(5, 4)) * [1e-4, 1.0, 1e2, 2e3]
    x, upstream = tf.constant(x, dtype), tf.constant(x[::-1].copy(), dtype)
    layer = GradientReversal(factor, dtype=dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x)
    np.testing.assert_array_equal(output, x)
    gradient = tape.gradient(output, x, output_gradients=upstream)
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
    expected = -factor * upstream.numpy().astype("float64")
    smallest = {"float16": 1e-7}.get(dtype, 0.0)  # below, it is denormal
    np.testing.assert_allclose(gradient, expected, tolerance, smallest)


def adversarial(factor):
    inputs = keras.Input((6,))
    features = keras.layers.Dense(5, "tanh", name="features")(inputs)
    reversal = GradientReversal(factor, name="reversal")
    return mtlkeras.MultiTaskModel(
        inputs,
        {
            "left": keras.layers.Dense(1, name="left")(features),
            "right": keras.layers.Dense(1, name="right")(reversal(features)),
        },
    )


def test_the_factor_changes_in_compiled_training():
    """With XLA, without another trace, seen in the weights of each epoch."""
    x, y = regression_data(("left", "right"), rows=8)
    model = adversarial(1.0)
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={"left": "mse", "right": "mse"},
        loss_weights={"left": 0.0, "right": 1.0},
        strategy="alternating",
        jit_compile=True,
    )
    factors, kernels = [1.0, 0.0, 2.5], []
    traces = []
    forward = model.get_layer("reversal").call

    def call(inputs):
        traces.append(1)
        return forward(inputs)

    model.get_layer("reversal").call = call
    features = model.get_layer("features")

    def expected(factor):
        """The gradient without reversal, times -factor."""
        with tf.GradientTape() as tape:
            output = model.get_layer("right")(features(x))
            loss = tf.reduce_mean((output - y["right"]) ** 2)
        return -factor * tape.gradient(loss, features.kernel.value)

    def set_factor(epoch, logs=None):
        model.get_layer("reversal").factor = factors[epoch]
        before = np.array(features.kernel)
        kernels.append(before - 0.1 * expected(factors[epoch]))

    def compare(epoch, logs=None):
        np.testing.assert_allclose(
            features.kernel, kernels[-1], rtol=1e-4, atol=1e-6
        )
        counts.append(len(traces))

    counts = []
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_begin=set_factor, on_epoch_end=compare
            )
        ],
    )
    assert len(kernels) == 3
    assert counts[0] == counts[2] > 0


def test_the_factor_is_saved(tmp_path):
    model = adversarial(0.1)
    layer = model.get_layer("reversal")
    assert layer.get_config()["factor"] == layer.factor == 0.1
    layer.factor = 0.7
    assert layer.get_config()["factor"] == layer.factor == 0.7
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("reversal").factor == 0.7
    other = adversarial(0.2)
    other.load_weights(tmp_path / "model.keras")
    assert other.get_layer("reversal").factor == 0.7
    # It is no weight that an optimizer sees.
    assert layer.trainable_variables == []


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_factors_that_are_none(factor):
    with pytest.raises(ValueError, match="finite number that is not negative"):
        GradientReversal(factor)
    layer = GradientReversal()
    with pytest.raises(ValueError, match="finite number that is not negative"):
        layer.factor = factor
    assert layer.factor == 1.0
