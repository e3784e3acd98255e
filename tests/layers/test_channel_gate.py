"""Hard gates: closed forms of gradient and loss, and pruned networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import assert_same_bits, regression_data, values

import mtlkeras
from mtlkeras.layers import ChannelGate

LOGITS = np.array([2.0, -1.0, 0.3, 0.0, -3.0, 1e-9])
HARD = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def arrays(shape=(4, 6), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for _ in range(2)]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gate(**arguments):
    layer = ChannelGate(**arguments)
    layer.build([(None, 6), (None, 6)])
    layer.logits.assign(LOGITS)
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_takes_exactly_one_side(shape, training):
    own, shared = arrays(shape)
    found = gate()([own, shared], training=training)
    np.testing.assert_array_equal(found, np.where(HARD > 0, own, shared))


def test_straight_through_gradients():
    own, shared = (tf.constant(x) for x in arrays())
    upstream = np.random.default_rng(5).normal(size=(4, 6))
    layer = gate()
    with tf.GradientTape() as tape:
        tape.watch([own, shared])
        total = tf.reduce_sum(layer([own, shared]) * upstream)
    found = tape.gradient(total, [own, shared, layer.logits.value])
    p = sigmoid(LOGITS)
    difference = own.numpy() - shared.numpy()
    expected = [
        upstream * HARD,
        upstream * (1.0 - HARD),
        (upstream * difference).sum(0) * p * (1.0 - p),
    ]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [0.0, 0.25, 0.9])
def test_budget(budget):
    layer = gate(budget=budget, budget_weight=3.0)
    with tf.GradientTape() as tape:
        layer(arrays())
        (loss,) = layer.losses
    p = sigmoid(LOGITS)
    expected = 3.0 * max(0.0, p.mean() - budget)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    gradient = tape.gradient(loss, layer.logits.value)
    slope = 3.0 * p * (1.0 - p) / 6 if p.mean() > budget else 0.0 * p
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_no_budget_no_loss():
    layer = gate()
    layer(arrays())
    assert layer.losses == []


def test_channels_and_fraction():
    layer = gate()
    np.testing.assert_array_equal(layer.task_channels, [0, 2, 5])
    np.testing.assert_array_equal(layer.shared_channels, [1, 3, 4])
    assert layer.task_fraction == 0.5


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_does_not_move_a_channel(policy):
    """1e-9 is 0 in float16, and 0 would be the shared side."""
    layer = gate(dtype=policy, budget=0.1)
    own, shared = np.ones((1, 6)), np.zeros((1, 6))
    found = keras.ops.cast(layer([own, shared]), "float32")
    np.testing.assert_array_equal(found, [HARD])
    assert layer.losses[0].dtype == "float32"


def take_channels(layer, channels):
    """A dense or convolutional layer with some of its outputs only."""
    config = layer.get_config()
    key = "units" if "units" in config else "filters"
    pruned = type(layer).from_config({**config, key: len(channels)})
    kernel, bias = layer.get_weights()
    pruned.build((*[None] * (kernel.ndim - 1), kernel.shape[-2]))
    pruned.set_weights([kernel[..., channels], bias[channels]])
    return pruned


BRANCHES = {
    "dense": (lambda: keras.layers.Dense(6, "tanh"), (5,)),
    "conv": (lambda: keras.layers.Conv2D(6, 3, activation="tanh"), (5, 5, 2)),
}


@pytest.mark.parametrize("kind", BRANCHES)
@pytest.mark.parametrize(
    "logits",
    [LOGITS, np.ones(6), -np.ones(6)],
    ids=["both", "all own", "all shared"],
)
def test_a_pruned_network_gives_the_same(kind, logits, tmp_path):
    branch, shape = BRANCHES[kind]
    own, shared, layer = branch(), branch(), ChannelGate(budget=0.1)
    x = keras.Input(shape)
    whole = keras.Model(x, layer([own(x), shared(x)]))
    layer.logits.assign(logits)
    parts = [
        take_channels(own, layer.task_channels)
        if len(layer.task_channels)
        else None,
        take_channels(shared, layer.shared_channels)
        if len(layer.shared_channels)
        else None,
    ]
    if None in parts:
        # One branch is not needed at all.
        (only,) = [part for part in parts if part is not None]
        pruned = keras.Model(x, only(x))
    else:
        pruned = keras.Model(x, layer.merge(parts[0](x), parts[1](x)))
    data = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    expected = whole(data)
    np.testing.assert_allclose(pruned(data), expected, rtol=1e-6, atol=1e-6)
    assert pruned.count_params() < whole.count_params() / 2
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.saving.load_model(tmp_path / "pruned.keras")
    np.testing.assert_array_equal(loaded(data), pruned(data))


def test_the_budget_is_paid_in_training():
    """Where the features do not matter, gates close down to the budget."""
    x, y = regression_data(("left", "right"), rows=16)
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(8, "tanh")(inputs)
    outputs, gates = {}, {}
    for task in y:
        gates[task] = ChannelGate(
            budget=0.25, budget_weight=10.0, gate_initializer="ones"
        )
        own = keras.layers.Dense(8, "tanh")(inputs)
        outputs[task] = keras.layers.Dense(1)(gates[task]([own, shared]))
    model = mtlkeras.MultiTaskModel(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.5),
        loss=dict.fromkeys(y, "mse"),
        loss_weights=dict.fromkeys(y, 0.0),
        strategy="alternating",
        run_eagerly=True,
    )
    for task, layer in gates.items():
        assert any(v is layer.logits for v in model.task_variables(task))
        assert layer.task_fraction == 1.0
    history = model.fit(x, y, batch_size=16, epochs=20, verbose=0).history
    assert history["loss"][0] > 4.0  # two times 10 * (0.73 - 0.25)
    for layer in gates.values():
        mean = sigmoid(np.array(layer.logits)).mean()
        assert abs(mean - 0.25) < 0.05
        assert layer.task_fraction == 0.0


def test_gates_are_saved(tmp_path):
    x = keras.Input((6,))
    layer = ChannelGate(budget=0.5, gate_initializer=keras.initializers.Ones())
    model = keras.Model(x, layer([keras.layers.Dense(6)(x), x]))
    layer.logits.assign(LOGITS)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(values(loaded.weights), values(model.weights))
    (copy,) = (n for n in loaded.layers if isinstance(n, ChannelGate))
    np.testing.assert_array_equal(copy.task_channels, layer.task_channels)


def test_the_mask_is_the_tasks_or_else_the_shared_one():
    own, shared = (keras.ops.convert_to_tensor(x) for x in arrays((2, 2, 6)))
    mask = keras.ops.convert_to_tensor([[True, False], [True, True]])
    shared._keras_mask = mask
    np.testing.assert_array_equal(gate()([own, shared])._keras_mask, mask)
    own._keras_mask = ~mask
    np.testing.assert_array_equal(gate()([own, shared])._keras_mask, ~mask)


@pytest.mark.parametrize("budget", [-0.1, 1.5])
def test_budget_that_is_no_fraction(budget):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ChannelGate(budget=budget)


@pytest.mark.parametrize(
    "shapes", [(None, 6), [(None, 6)] * 3, [(None, 6), (None, 5)]]
)
def test_other_inputs(shapes):
    with pytest.raises(ValueError, match="two tensors of one shape"):
        ChannelGate().build(shapes)
