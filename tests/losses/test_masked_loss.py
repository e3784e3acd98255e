"""The wrapped loss of stock Keras, on the labelled entries alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras.losses import MaskedLoss

NAN = float("nan")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def probabilities(*shape):
    values = np.exp(numbers(*shape, seed=1))
    return (values / values.sum(-1, keepdims=True)).astype("float32")


def one_hot(rows, classes):
    drawn = np.random.default_rng(2).integers(0, classes, rows)
    return np.eye(classes, dtype="float32")[drawn]


def zero_or_one(*shape):
    drawn = np.random.default_rng(3).integers(0, 2, shape)
    return drawn.astype("float32")


# Loss, targets and predictions of 8 rows.
ROW_WISE = {
    "mse": ("mse", numbers(8, 3), numbers(8, 3, seed=4)),
    "mae of columns": ("mae", numbers(8, 1), numbers(8, 1, seed=4)),
    "flat targets": ("mse", numbers(8), numbers(8, 1, seed=4)),
    "huber": (keras.losses.Huber(0.3), numbers(8, 2), numbers(8, 2, seed=4)),
    "cosine": (
        keras.losses.CosineSimilarity(),
        numbers(8, 3),
        numbers(8, 3, seed=4),
    ),
    "binary": (
        keras.losses.BinaryCrossentropy(label_smoothing=0.1),
        zero_or_one(8, 1),
        probabilities(8, 2)[:, :1],
    ),
    "categorical": (
        "categorical_crossentropy",
        one_hot(8, 4),
        probabilities(8, 4),
    ),
    "hinge": ("hinge", 2 * zero_or_one(8, 2) - 1, numbers(8, 2)),
    "function": (
        lambda y_true, y_pred: keras.ops.sum(
            keras.ops.square(y_true - y_pred), axis=-1
        ),
        numbers(8, 2),
        numbers(8, 2, seed=4),
    ),
}


@pytest.mark.parametrize("name", ROW_WISE)
def test_rows_against_stock_keras(name):
    loss, y_true, y_pred = ROW_WISE[name]
    stock = keras.losses.get(loss)
    rows = np.array([True, False, True, True, False, True, False, True])
    expected = np.mean(stock(y_true[rows], y_pred[rows]))
    if callable(stock) and not isinstance(stock, keras.losses.Loss):
        expected = np.mean(
            keras.ops.convert_to_numpy(
                stock(y_true[rows].reshape(5, -1), y_pred[rows])
            )
        )
    missing = y_true.copy()
    missing[~rows] = np.nan
    masked = MaskedLoss(loss)
    np.testing.assert_allclose(masked(missing, y_pred), expected, rtol=1e-5)
    # All labelled: the wrapped loss.
    np.testing.assert_allclose(
        masked(y_true, y_pred),
        np.mean(
            keras.ops.convert_to_numpy(stock(y_true.reshape(8, -1), y_pred))
        ),
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_missing_as_a_number(dtype, shape):
    missing = 255 if dtype == "uint8" else -1
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    y_true = np.arange(8).reshape(shape).astype(dtype) % 4
    y_pred = numbers(8, 4)
    rows = np.arange(8) % 3 != 1
    expected = stock(y_true[rows], y_pred[rows])
    y_true[~rows] = missing
    value = MaskedLoss(stock, missing=missing)(y_true, y_pred)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_both_nan_and_a_number_are_missing():
    masked = MaskedLoss("mse", missing=-1)
    y_true = np.array([[1.0], [-1.0], [NAN], [2.0]], "float32")
    y_pred = np.array([[3.0], [9.0], [9.0], [5.0]], "float32")
    np.testing.assert_allclose(masked(y_true, y_pred), (4 + 9) / 2)
    assert masked.labelled(tf.constant(y_true)).numpy().ravel().tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_pixels():
    y_true, y_pred = numbers(4, 5, 5, 1), numbers(4, 5, 5, 1, seed=4)
    seen = np.random.default_rng(5).random(y_true.shape) < 0.3
    expected = np.mean(np.abs(y_true - y_pred)[seen])
    y_true[~seen] = np.nan
    np.testing.assert_allclose(
        MaskedLoss("mae")(y_true, y_pred), expected, rtol=1e-5
    )


def test_an_entry_needs_all_of_its_values():
    """A pixel with normals of three values counts if none is missing."""
    y_true, y_pred = numbers(2, 3, 3), numbers(2, 3, 3, seed=4)
    y_true[0, 1, 2] = y_true[1, 0, 0] = np.nan
    seen = ~np.isnan(y_true).any(-1)
    expected = np.mean(np.square(y_true - y_pred).mean(-1)[seen])
    np.testing.assert_allclose(
        MaskedLoss("mse")(y_true, y_pred), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_sample_weights_of_the_wrapped_loss(reduction, weighted):
    stock = keras.losses.MeanSquaredError(reduction=reduction)
    y_true, y_pred = numbers(8, 2), numbers(8, 2, seed=4)
    rows = np.arange(8) % 4 != 1
    weights = np.arange(8.0, dtype="float32") if weighted else None
    expected = stock(
        y_true[rows], y_pred[rows], weights[rows] if weighted else None
    )
    y_true[~rows] = np.nan
    masked = MaskedLoss(stock)
    assert masked.reduction == reduction
    np.testing.assert_allclose(
        masked(y_true, y_pred, weights), expected, rtol=1e-5
    )


@pytest.mark.parametrize("labelled", [0, 5])
def test_gradients_are_zero_where_nothing_is_labelled(labelled):
    y_true, y_pred = numbers(8, 1), tf.Variable(numbers(8, 1, seed=4))
    expected = np.zeros((8, 1))
    if labelled:
        difference = y_pred.numpy() - y_true
        expected[:labelled] = 2 * difference[:labelled] / labelled
    y_true[labelled:] = np.nan
    with tf.GradientTape() as tape:
        value = MaskedLoss("mse")(y_true, y_pred)
    gradient = tape.gradient(value, y_pred).numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)
    if not labelled:
        assert float(value) == 0.0


def test_a_loss_that_is_singular_at_zero_keeps_finite_gradients():
    """Behind the mask a zero target must not be worse than NaN was."""
    y_true = np.array([[NAN], [2.0]], "float32")
    y_pred = tf.Variable([[0.5], [0.5]])
    with tf.GradientTape() as tape:
        value = MaskedLoss("mean_absolute_percentage_error")(y_true, y_pred)
    np.testing.assert_allclose(value, 75.0, rtol=1e-5)
    gradient = tape.gradient(value, y_pred).numpy()
    np.testing.assert_allclose(gradient, [[0.0], [-50.0]], rtol=1e-5)


def test_integers_without_a_code_are_never_missing():
    assert MaskedLoss("mse").labelled(tf.constant([1, 2])) is None


def test_inside_a_graph_and_under_xla():
    y_true = np.array([[1.0], [NAN], [4.0]], "float32")
    y_pred = np.array([[2.0], [0.0], [2.0]], "float32")
    for jit_compile in (False, True):
        value = tf.function(MaskedLoss("mse"), jit_compile=jit_compile)(
            tf.constant(y_true), tf.constant(y_pred)
        )
        np.testing.assert_allclose(value, 2.5, rtol=1e-6)


def test_serialization():
    smoothed = keras.losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=0.25, reduction="sum"
    )
    loss = MaskedLoss(smoothed, missing=-1, name="mine")
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, MaskedLoss)
    assert again.name == "mine"
    assert again.missing == -1
    y_true, y_pred = numbers(6, 2), numbers(6, 2, seed=4)
    y_true[2] = -1
    np.testing.assert_array_equal(loss(y_true, y_pred), again(y_true, y_pred))
    assert MaskedLoss("mse").name == "mse"
    config = keras.saving.serialize_keras_object(MaskedLoss("mse"))
    again = keras.saving.deserialize_keras_object(config)
    assert np.isnan(again.missing)
    y_true[2] = np.nan
    np.testing.assert_array_equal(
        MaskedLoss("mse")(y_true, y_pred), again(y_true, y_pred)
    )


def test_a_loss_without_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction=None|reduction='none'"):
        MaskedLoss(keras.losses.MeanSquaredError(reduction=None))


def test_what_is_no_loss_is_refused():
    with pytest.raises(ValueError, match="loss"):
        MaskedLoss(3)
