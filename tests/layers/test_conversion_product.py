"""Products of conditional probabilities, also as logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import regression_data

import mtlkeras
from mtlkeras.layers import ConversionProduct


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def logit_of_product(*logits):
    """In float64, by way of `log(1 + exp)` and Python's big integers not."""
    log_p = -sum(np.logaddexp(0.0, -np.asarray(a, "float64")) for a in logits)
    # log(1 - p), by the form that is exact on its side.
    small = log_p < -np.log(2.0)
    with np.errstate(divide="ignore"):
        log_q = np.where(
            small, np.log1p(-np.exp(log_p)), np.log(-np.expm1(log_p))
        )
    return log_p - log_q


def step(layer, inputs):
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = layer(inputs)
    return output.numpy(), [g.numpy() for g in tape.gradient(output, inputs)]


def test_product_and_its_gradient():
    rng = np.random.default_rng(0)
    a, b, c = (rng.uniform(size=(6, 2)).astype("float32") for _ in range(3))
    a[0], b[1], c[2] = 0.0, 1.0, 0.0
    output, gradients = step(ConversionProduct(), [a, b, c])
    np.testing.assert_allclose(output, a * b * c, rtol=1e-6)
    assert ((output >= 0) & (output <= 1)).all()
    # A longer chain is never more likely than a shorter one.
    assert (output <= step(ConversionProduct(), [a, b])[0]).all()
    for found, expected in zip(gradients, [b * c, a * c, a * b], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_logits_and_their_gradient():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0, 3, (50, 2)).astype("float32") for _ in range(2))
    output, gradients = step(ConversionProduct(from_logits=True), [a, b])
    p, q = sigmoid(a.astype("float64")), sigmoid(b.astype("float64"))
    np.testing.assert_allclose(sigmoid(output), p * q, rtol=1e-5)
    np.testing.assert_allclose(output, logit_of_product(a, b), 1e-5, 1e-5)
    # d logit(pq) / da = (1 - p) / (1 - pq)
    for found, own in zip(gradients, (p, q), strict=True):
        expected = (1 - own) / (1 - p * q)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected", "slopes"),
    [
        # Certain: the less certain event decides, and all its gradient.
        ([30.0, 30.0], 30.0 - np.log(2), [0.5, 0.5]),
        ([80.0, 20.0], 20.0, [0.0, 1.0]),
        # A rare one after a certain one is that rare one.
        ([50.0, -50.0], -50.0, [0.0, 1.0]),
        # Both rare: the logits add up.
        ([-60.0, -70.0], -130.0, [1.0, 1.0]),
        ([-3e4, -2e4], -5e4, [1.0, 1.0]),
        ([3e4, 2e4], 2e4, [0.0, 1.0]),
        # A chain of three.
        ([-40.0, 40.0, -50.0], -90.0, [1.0, 0.0, 1.0]),
    ],
)
def test_extreme_logits(logits, expected, slopes):
    inputs = [np.full((1, 1), a, "float32") for a in logits]
    output, gradients = step(ConversionProduct(from_logits=True), inputs)
    np.testing.assert_allclose(output, [[expected]], rtol=1e-6)
    for found, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(found, [[slope]], atol=1e-6)
    # Where NumPy's float64 can tell, it says the same.
    other = logit_of_product(*logits)
    if np.isfinite(other):
        np.testing.assert_allclose(output, [[other]], rtol=1e-5)


def test_rare_events_keep_a_gradient_in_logits_only():
    """In probabilities, Keras's loss clips at 1e-7 and its gradient is 0."""
    logits = [tf.constant([[-12.0]]), tf.constant([[-12.0]])]
    y = tf.constant([[1.0]])
    slopes = {}
    for from_logits in (False, True):
        layer = ConversionProduct(from_logits=from_logits)
        loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            given = logits if from_logits else [tf.sigmoid(x) for x in logits]
            value = loss(y, layer(given))
        slopes[from_logits] = tape.gradient(value, logits)[0].numpy().item()
    assert slopes[False] == 0.0
    np.testing.assert_allclose(slopes[True], -1.0, rtol=1e-5)


def test_every_mask_has_to_hold():
    tensors = [keras.ops.ones((2, 2, 1)) for _ in range(3)]
    first = np.array([[True, True], [True, False]])
    second = np.array([[True, False], [True, True]])
    tensors[0]._keras_mask = keras.ops.convert_to_tensor(first)
    tensors[2]._keras_mask = keras.ops.convert_to_tensor(second)
    output = ConversionProduct()(tensors)
    np.testing.assert_array_equal(output._keras_mask, first & second)


def test_entire_space_model():
    """The conditional head is trained by way of the product alone."""
    x, y = regression_data(("click", "bought"), rows=16)
    click = (y["click"] > 0).astype("float32")
    y = {"click": click, "bought": click * (y["bought"] > 0)}
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(4, "tanh", name="shared")(inputs)
    clicked = keras.layers.Dense(1, name="click")(shared)
    converted = keras.layers.Dense(1, name="conversion")(shared)
    model = mtlkeras.MultiTaskModel(
        inputs,
        {
            "click": clicked,
            "bought": ConversionProduct(from_logits=True)([clicked, converted]),
        },
    )

    def layers(variables):
        return {v.path.split("/")[0] for v in variables}

    assert layers(model.shared_variables) == {"shared", "click"}
    assert layers(model.task_variables("bought")) == {"conversion"}
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(0.05),
        loss={"click": loss, "bought": loss},
        strategy="alternating",
        run_eagerly=True,
    )
    history = model.fit(x, y, batch_size=16, epochs=10, verbose=0).history
    assert history["bought_loss"][-1] < history["bought_loss"][0]
    predicted = model.predict(x, verbose=0)
    assert (predicted["bought"] <= predicted["click"] + 1e-6).all()


@pytest.mark.parametrize(
    "shapes", [(None, 1), [(None, 1)], [(None, 1), (None, 2)]]
)
def test_other_inputs(shapes):
    with pytest.raises(ValueError, match="two or more tensors of one shape"):
        ConversionProduct().build(shapes)
