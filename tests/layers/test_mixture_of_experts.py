"""Experts and gates, against NumPy and the same net of stock layers."""

import keras
import numpy as np
import pytest
from nets import assert_same_bits, regression_data, values
from reference_experts import dense, mix, softmax

import mtlkeras
from mtlkeras.layers import MixtureOfExperts

Dense = keras.layers.Dense
TASKS = ("left", "middle", "right")


def inputs(shape=(5, 6), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_equals_numpy():
    x = inputs()
    layer = MixtureOfExperts(list(TASKS), 4, units=3)
    outputs = layer(x)
    assert list(outputs) == list(TASKS)
    experts = [dense(e, x, relu=True) for e in layer.experts]
    assert len(experts) == 4
    for gate, task in zip(layer.gates, TASKS, strict=True):
        np.testing.assert_allclose(
            outputs[task], mix(gate, x, experts), rtol=1e-5, atol=1e-6
        )
    # Gates without bias, as in the paper's formula.
    assert all(len(gate.weights) == 1 for gate in layer.gates)


def test_gates_per_position_equal_numpy():
    x = inputs((4, 3, 2, 6))
    layer = MixtureOfExperts(2, 3, units=4, per_position=True)
    experts = [dense(e, x, relu=True) for e in layer(x) and layer.experts]
    for gate, output in zip(layer.gates, layer(x), strict=True):
        np.testing.assert_allclose(
            output, mix(gate, x, experts), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("masked_axes", [0, 1, 2])
def test_gates_per_example_see_the_mean_of_what_is_not_masked(masked_axes):
    x = inputs((4, 3, 2, 6))
    mask = np.ones((4, 3, 2), bool)
    tensor = keras.ops.convert_to_tensor(x)
    if masked_axes:
        mask = np.random.default_rng(0).random((4, 3, 2)[: 1 + masked_axes])
        mask = mask > 0.4
        mask[0] = False  # nothing is left of an example
        mask[1] = True
        tensor._keras_mask = keras.ops.convert_to_tensor(mask)
        mask = np.broadcast_to(
            mask.reshape(*mask.shape, *[1] * (3 - mask.ndim)), (4, 3, 2)
        )
        seen = np.where(mask[..., None], x, np.nan)  # does not matter
        seen = keras.ops.convert_to_tensor(seen)
        seen._keras_mask, tensor = tensor._keras_mask, seen
    layer = MixtureOfExperts(2, 3, units=4)
    outputs = layer(tensor)
    kept = mask[..., None].astype("float64")
    count = np.maximum(kept.sum((1, 2)), 1)
    mean = (x * kept).sum((1, 2)) / count  # [batch, features]
    experts = [dense(e, x, relu=True) for e in layer.experts]
    for gate, output in zip(layer.gates, outputs, strict=True):
        weights = softmax(mean @ np.array(gate.kernel))  # [batch, experts]
        expected = sum(
            weights[:, e, None, None, None] * y for e, y in enumerate(experts)
        )
        found = np.array(output)[mask]
        np.testing.assert_allclose(found, expected[mask], 1e-5, 1e-6)


def test_any_layers_and_models_are_experts(tmp_path):
    """Convolutions, whole models, and what has no `build` of its own."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(image)
    x = keras.layers.BatchNormalization()(x)
    experts = [
        keras.Sequential(
            [keras.layers.Conv2D(4, 3, strides=2, padding="same")]
        ),
        keras.Model(image, x),
        TwoSteps(),
    ]
    tasks = ["left", "right"]
    outputs = MixtureOfExperts(tasks, experts)(image)
    assert tuple(outputs["left"].shape) == (None, 4, 4, 4)
    model = mtlkeras.MultiTaskModel(
        image, {t: keras.layers.Flatten(name=t)(outputs[t]) for t in tasks}
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(values(loaded.weights), values(model.weights))
    x = inputs((2, 8, 8, 3))
    for task in tasks:
        np.testing.assert_array_equal(loaded(x)[task], model(x)[task])


@keras.saving.register_keras_serializable("mtlkeras_tests")
class TwoSteps(keras.layers.Layer):
    """Neither `build` nor `compute_output_shape`, as users write layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(2, 3, strides=2, padding="same")
        self.second = Dense(4)

    def call(self, x):
        return self.second(self.first(x))


def test_an_expert_that_does_away_with_the_positions():
    x = keras.ops.convert_to_tensor(inputs((2, 3, 6)))
    x._keras_mask = keras.ops.convert_to_tensor(
        np.array([[True, True, False], [True, False, False]])
    )
    experts = [keras.layers.GRU(4), keras.layers.GRU(4)]
    layer = MixtureOfExperts(1, experts)
    (output,) = layer(x)
    # The experts have seen the mask, and no position is left to be masked.
    seen = keras.ops.convert_to_numpy(x).copy()
    seen[0, 2] = seen[1, 1:] = 9.0
    seen = keras.ops.convert_to_tensor(seen)
    seen._keras_mask = x._keras_mask
    np.testing.assert_allclose(layer(seen)[0], output, rtol=1e-6)
    assert getattr(output, "_keras_mask", None) is None


def of_stock_layers(cls=mtlkeras.MultiTaskModel):
    """The net of `of_our_layer` without our layer."""
    x = keras.Input((6,))
    experts = [Dense(4, "relu", name=f"expert_{e}")(x) for e in range(3)]
    stacked = keras.ops.stack(experts, axis=-1)
    outputs = {}
    for task in TASKS:
        gate = Dense(3, "softmax", use_bias=False, name=f"gate_{task}")(x)
        gate = keras.layers.Reshape((1, 3))(gate)
        mixed = keras.ops.sum(stacked * gate, axis=-1)
        outputs[task] = Dense(1, name=task)(mixed)
    return cls(x, outputs)


def of_our_layer():
    x = keras.Input((6,))
    mixed = MixtureOfExperts(list(TASKS), 3, units=4, name="mixture")(x)
    return mtlkeras.MultiTaskModel(
        x, {task: Dense(1, name=task)(mixed[task]) for task in TASKS}
    )


@pytest.mark.parametrize(
    ("strategy", "aggregator"),
    [
        ("alternating", None),
        (mtlkeras.strategies.RandomGroups(2, "step", seed=0), None),
        (mtlkeras.strategies.Sampled(seed=1), None),
        ("joint", mtlkeras.aggregators.MGDA(normalization="l2")),
    ],
    ids=lambda given: getattr(given, "name", None) or str(given),
)
def test_trains_as_the_same_net_of_stock_layers(strategy, aggregator):
    """One layer or many: the same tasks own the same gates."""
    x, y = regression_data(TASKS, rows=24)
    # A task without labels in the first batch: its gate has to rest.
    y["middle"][:8] = np.nan
    ours, stock = of_our_layer(), of_stock_layers()

    def by_name(model):
        return {v.path.removeprefix("mixture/"): v for v in model.weights}

    weights = by_name(ours)
    for path, v in by_name(stock).items():
        v.assign(weights[path])
    for model in (ours, stock):
        model.compile(
            keras.optimizers.AdamW(0.01, weight_decay=0.1),
            loss=dict.fromkeys(TASKS, "mse"),
            strategy=strategy,
            aggregator=aggregator,
            run_eagerly=True,
        )
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        own = [v.path.split("/")[-2] for v in model.task_variables("left")]
        assert sorted(set(own)) == ["gate_left", "left"]
        assert len(model.shared_variables) == 6
    for path, v in by_name(stock).items():
        np.testing.assert_allclose(v, weights[path], 1e-4, 1e-6, err_msg=path)


# -- refusals ------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [0, True, [], ["a", "a"], [1, 2], "ab"])
def test_tasks_that_are_none(tasks):
    with pytest.raises(ValueError, match="Argument `tasks` must be a positive"):
        MixtureOfExperts(tasks, 2, units=3)


@pytest.mark.parametrize("experts", [0, -1, 2])
def test_numbers_of_experts_without_units(experts):
    units = 3 if experts < 1 else None
    with pytest.raises(ValueError, match="positive number together with `un"):
        MixtureOfExperts(2, experts, units=units)


@pytest.mark.parametrize("experts", [[], [Dense], "dense", True, Dense(3)])
def test_experts_that_are_none(experts):
    with pytest.raises(ValueError, match="a number or a list of Keras layers"):
        MixtureOfExperts(2, experts)


@pytest.mark.parametrize("experts", [1, [Dense(3)]], ids=str)
def test_a_single_expert(experts):
    units = 3 if experts == 1 else None
    with pytest.raises(ValueError, match="at least two experts"):
        MixtureOfExperts(2, experts, units=units)


def test_layers_with_units():
    with pytest.raises(ValueError, match="`units` must be left out"):
        MixtureOfExperts(2, [Dense(3)], units=3)


def test_one_layer_as_two_experts():
    expert = Dense(3, name="twice")
    with pytest.raises(ValueError, match="a layer of its own.*twice"):
        MixtureOfExperts(2, [expert, expert])


def test_experts_of_unlike_shapes():
    layer = MixtureOfExperts(2, [Dense(3), Dense(4)])
    with pytest.raises(ValueError, match="one shape.*3.*4"):
        layer(inputs())


def test_gates_per_position_where_experts_lose_positions():
    experts = [keras.layers.Conv1D(4, 3, strides=2) for _ in range(2)]
    layer = MixtureOfExperts(2, experts, per_position=True)
    with pytest.raises(ValueError, match="Use `per_position=False`"):
        layer(inputs((2, 7, 3)))


def test_several_inputs():
    with pytest.raises(ValueError, match="must be one tensor"):
        MixtureOfExperts(2, 2, units=3)([inputs(), inputs()])
