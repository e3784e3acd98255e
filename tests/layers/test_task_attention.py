"""MTAN's attention, against NumPy, and a chain of it."""

import keras
import numpy as np
import pytest
from nets import assert_same_bits, values

import mtlkeras
from mtlkeras.layers import TaskAttention


def arrays(*channels, positions=(3, 2), seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(4, *positions, c)).astype("float32") for c in channels
    ]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def reference(layer, features, context, kept=None, training=False):
    """`sigmoid(h(relu(g(context)))) * features`, in float64."""
    x = np.concatenate(context, axis=-1).astype("float64")
    for k, activation in enumerate((lambda z: np.maximum(z, 0), sigmoid)):
        kernel, bias = (np.array(v, "float64") for v in layer.dense[k].weights)
        x = x @ kernel + bias
        if layer.batch_norm:
            norm = layer.norms[k]
            mean, variance = norm.moving_mean, norm.moving_variance
            if training:
                rows = x[kept] if kept is not None else x
                rows = rows.reshape(-1, x.shape[-1])
                mean, variance = rows.mean(0), rows.var(0)
            x = (x - np.array(mean)) / np.sqrt(
                np.array(variance) + norm.epsilon
            )
            x = x * np.array(norm.gamma) + np.array(norm.beta)
        x = activation(x)
    return x * features


def built(layer, inputs):
    layer(inputs)
    rng = np.random.default_rng(3)
    for v in layer.variables:
        if v.dtype == "float32":
            v.assign(v + rng.uniform(0.1, 0.9, v.shape))
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_equals_numpy(batch_norm, training):
    features, *context = inputs = arrays(5, 3, 4)
    layer = built(TaskAttention(units=7, batch_norm=batch_norm), inputs)
    expected = reference(layer, features, context, training=training)
    found = layer(inputs, training=training)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert layer.dense[0].units == 7


def test_features_alone_are_their_own_context():
    (features,) = arrays(5)
    layer = built(TaskAttention(), features)
    expected = reference(layer, features, [features])
    for given in (features, [features]):
        np.testing.assert_allclose(layer(given), expected, 1e-4, 1e-5)
    assert layer.dense[0].units == 5


def test_masked_positions_do_not_count_in_the_statistics():
    features, context = arrays(5, 3, positions=(6,))
    layer = built(TaskAttention(), [features, context])
    mask = np.random.default_rng(1).random((4, 6)) > 0.4
    tensor = keras.ops.convert_to_tensor(features)
    tensor._keras_mask = keras.ops.convert_to_tensor(mask)
    expected = reference(layer, features, [context], mask, training=True)
    found = layer([tensor, context], training=True)
    np.testing.assert_allclose(found[mask], expected[mask], 1e-4, 1e-5)
    np.testing.assert_array_equal(found._keras_mask, mask)


def network(tasks=("depth", "labels")):
    """Two blocks, as in the paper: the layers in between serve all tasks."""
    Conv2D = keras.layers.Conv2D
    image = keras.Input((8, 8, 3))
    pool = keras.layers.MaxPooling2D()
    u = Conv2D(4, 3, padding="same", activation="relu", name="u")(image)
    p = Conv2D(4, 3, padding="same", activation="relu", name="p")(u)
    v = Conv2D(6, 3, padding="same", activation="relu", name="v")(pool(p))
    q = Conv2D(6, 3, padding="same", activation="relu", name="q")(v)
    onwards = Conv2D(6, 3, padding="same", activation="relu", name="onwards")
    outputs = {}
    for task in tasks:
        x = TaskAttention(name=f"{task}_1")([p, u])
        x = TaskAttention(name=f"{task}_2")([q, v, pool(onwards(x))])
        outputs[task] = Conv2D(1, 1, name=task)(x)
    return mtlkeras.MultiTaskModel(image, outputs)


def test_a_chain_of_blocks_trains(tmp_path):
    model = network()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 8, 3)).astype("float32")
    y = rng.normal(size=(8, 4, 4, 1)).astype("float32")

    def layers(variables):
        return {v.path.split("/")[0] for v in variables}

    assert layers(model.shared_variables) == {"u", "p", "v", "q", "onwards"}
    assert layers(model.task_variables("depth")) == {
        "depth_1",
        "depth_2",
        "depth",
    }
    model.compile(
        keras.optimizers.Adam(0.01),
        loss={"depth": "mse", "labels": "mae"},
        strategy="alternating",
        run_eagerly=True,
    )
    before = values(model.trainable_variables)
    model.fit(x, {"depth": y, "labels": y}, batch_size=4, verbose=0)
    for v, old in zip(model.trainable_variables, before, strict=True):
        assert (np.array(v) != old).any(), v.path
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for task in ("depth", "labels"):
        assert_same_bits(
            [np.array(loaded(x)[task])], [np.array(model(x)[task])]
        )


def test_inputs_of_unlike_positions():
    with pytest.raises(ValueError, match="equal shapes but for the channels"):
        TaskAttention()([np.ones((2, 4, 3)), np.ones((2, 2, 3))])
