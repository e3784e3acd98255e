"""Own and shared experts, one and two levels, against NumPy."""

import keras
import numpy as np
import pytest
from nets import Opaque, assert_same_bits, regression_data, values
from reference_experts import dense, mix

import mtlkeras
from mtlkeras.layers import CustomizedGateControl

Dense = keras.layers.Dense
TASKS = ("left", "middle", "right")


def inputs(shape=(5, 6), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def reference(layer, streams):
    """The outputs for the list of the tasks' streams and the shared one."""
    shared = [dense(e, streams[-1], relu=True) for e in layer.shared_experts]
    own = [
        [dense(e, x, relu=True) for e in experts]
        for experts, x in zip(layer.task_experts, streams, strict=False)
    ]
    outputs = [
        mix(gate, x, experts + shared)
        for gate, x, experts in zip(layer.gates, streams, own, strict=False)
    ]
    if layer.shared_output:
        everyone = shared + [y for experts in own for y in experts]
        outputs.append(mix(layer.gates[-1], streams[-1], everyone))
    return outputs


def assert_close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_input_equals_numpy():
    x = inputs()
    layer = CustomizedGateControl(3, 2, 4, units=3)
    found = layer(x)
    assert [len(experts) for experts in layer.task_experts] == [2, 2, 2]
    assert len(layer.shared_experts) == 4
    assert_close(found, reference(layer, [x] * 4))


def test_one_input_per_stream_equals_numpy():
    streams = [inputs((5, n), n) for n in (2, 3, 4, 5)]
    layer = CustomizedGateControl(3, 2, 1, units=3, shared_output=True)
    found = layer(streams)
    assert_close(found, reference(layer, streams))


def test_two_levels_equal_numpy():
    """Progressive layered extraction."""
    # Not in the order of the alphabet, in which Keras flattens a dict.
    tasks = ["zoo", "ant"]
    first = CustomizedGateControl(tasks, 1, 2, units=4, shared_output=True)
    second = CustomizedGateControl(tasks, 2, 1, units=3)
    x = inputs()
    between = first(x)
    assert list(between) == ["zoo", "ant", "shared"]
    found = second(between)
    assert list(found) == tasks
    expected = reference(first, [x] * 3)
    assert_close(list(between.values()), expected)
    assert_close(list(found.values()), reference(second, expected))
    # The order of a dict's keys does not matter.
    again = second(dict(sorted(between.items())))
    for task in tasks:
        np.testing.assert_array_equal(again[task], found[task])


def test_experts_by_task_name():
    shared, left, right = Dense(3), [Dense(3)], [Dense(3), Dense(3)]
    layer = CustomizedGateControl(
        ["left", "right"], {"right": right, "left": left}, [shared]
    )
    layer(inputs())
    assert layer.task_experts == [left, right]
    assert layer.shared_experts == [shared]
    assert [gate.units for gate in layer.gates] == [2, 3]


def test_every_output_has_the_mask_of_its_stream():
    tasks = ["zoo", "ant"]
    layer = CustomizedGateControl(tasks, 1, 1, units=3, shared_output=True)
    masks = {
        "zoo": np.array([[True, False], [True, True]]),
        "shared": np.array([[False, True], [True, False]]),
    }
    streams = {
        name: keras.ops.convert_to_tensor(inputs((2, 2, 4)))
        for name in (*tasks, "shared")
    }
    for name, mask in masks.items():
        streams[name]._keras_mask = keras.ops.convert_to_tensor(mask)
    outputs = layer(streams)
    for name, mask in masks.items():
        np.testing.assert_array_equal(outputs[name]._keras_mask, mask)
    assert getattr(outputs["ant"], "_keras_mask", None) is None


# -- which task reaches what ---------------------------------------------------


def two_levels(cls=mtlkeras.MultiTaskModel, expert=None, seed=0):
    keras.utils.set_random_seed(seed)

    def experts(number, units):
        return [
            expert(units) if expert else Dense(units, "tanh")
            for _ in range(number)
        ]

    def level(units, **arguments):
        return CustomizedGateControl(
            list(TASKS),
            [experts(1, units) for _ in TASKS],
            experts(2, units),
            **arguments,
        )

    x = keras.Input((6,))
    streams = level(5, shared_output=True, name="first")(x)
    # Layers between the levels are their stream's own, too.
    streams = {
        name: Dense(4, "tanh", name=f"between_{name}")(y)
        for name, y in streams.items()
    }
    streams = level(3, name="second")(streams)
    return cls(x, {n: Dense(1, name=n)(y) for n, y in streams.items()})


def owners(model):
    """Names of the tasks that reach each trainable variable."""
    found = []
    for v in model.trainable_variables:
        own = [
            name
            for name in model.task_names
            if any(v is other for other in model.task_variables(name))
        ]
        shared = any(v is other for other in model.shared_variables)
        found.append((own, shared))
    return found


def test_own_variables_of_two_levels():
    model = two_levels()
    first, second = model.get_layer("first"), model.get_layer("second")
    for k, name in enumerate(TASKS):
        own = [
            # The shared stream takes of the first level's experts, of all.
            *first.gates[k].variables,
            *model.get_layer(f"between_{name}").variables,
            *second.gates[k].variables,
            *second.task_experts[k][0].variables,
            *model.get_layer(name).variables,
        ]
        found = model.task_variables(name)
        assert {id(v) for v in found} == {id(v) for v in own}
    shared = [
        *[v for e in first.experts for v in e.variables],
        *first.gates[-1].variables,
        *model.get_layer("between_shared").variables,
        *[v for e in second.shared_experts for v in e.variables],
    ]
    assert {id(v) for v in model.shared_variables} == {id(v) for v in shared}


def train(model, strategy, **arguments):
    x, y = regression_data(TASKS, rows=16)
    # Without labels for a batch, a task's own gates and experts rest.
    y["right"][8:16] = np.nan
    model.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        loss=dict.fromkeys(TASKS, "mse"),
        strategy=strategy,
        run_eagerly=True,
        **arguments,
    )
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize(
    ("strategy", "aggregator"),
    [
        (mtlkeras.strategies.RandomGroups(2, "step", seed=0), None),
        ("joint", "upgrad"),
    ],
    ids=str,
)
def test_trains_as_if_the_graph_were_unknown(strategy, aggregator):
    """Which gradients exist, traced, tells the same as the layers do."""
    model = train(two_levels(), strategy, aggregator=aggregator)
    opaque = Opaque(two_levels(keras.Model))
    train(opaque, strategy, aggregator=aggregator)
    assert owners(model) == owners(opaque)
    for a, b in zip(model.weights, opaque.weights, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-6, err_msg=a.path)


@keras.saving.register_keras_serializable("mtlkeras_tests")
class Counting(keras.layers.Layer):
    """Counts the batches, adds to the loss, and has a kernel."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, x):
        self.count.assign_add(1.0)
        self.add_loss(0.5 * keras.ops.sum(self.kernel**2))
        return x @ self.kernel

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_state_and_added_losses_of_own_experts():
    """Both follow the steps of their task, as those of a head do."""
    x, y = regression_data(TASKS, rows=8)
    nothing = dict.fromkeys(TASKS, 0.0)
    model = two_levels(expert=Counting)
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=dict.fromkeys(TASKS, "mse"),
        loss_weights=nothing,  # so that only the added losses are left
        strategy="alternating",
        run_eagerly=True,
    )
    y["right"][:] = np.nan
    second = model.get_layer("second")
    before = [np.array(e.kernel) for e in second.experts]
    model.train_on_batch(x, y)
    (left,), (middle,), (right,) = second.task_experts
    assert float(left.count) == float(middle.count) == 1.0
    assert float(right.count) == 0.0
    # Once per batch in full: kernel - 0.1 * kernel. Shared ones in two halves.
    factors = {id(left): 0.9, id(middle): 0.9, id(right): 1.0}
    for expert, kernel in zip(second.experts, before, strict=True):
        factor = factors.get(id(expert), 0.95**2)
        np.testing.assert_allclose(expert.kernel, factor * kernel, rtol=1e-5)


def test_two_levels_come_back(tmp_path):
    model = train(two_levels(), "alternating")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(values(loaded.weights), values(model.weights))
    x = inputs()
    assert_same_bits(
        [np.array(loaded(x)[n]) for n in TASKS],
        [np.array(model(x)[n]) for n in TASKS],
    )
    assert owners(loaded) == owners(model)


# -- refusals ------------------------------------------------------------------


def test_a_task_that_is_called_shared():
    with pytest.raises(ValueError, match="must not hold 'shared'"):
        CustomizedGateControl(["shared", "left"], 1, 1, units=3)


@pytest.mark.parametrize(
    "task_experts",
    [[[Dense(3)]], {"left": [Dense(3)]}, "dense", None],
    ids=["too few", "a task is missing", "string", "none"],
)
def test_experts_for_other_tasks(task_experts):
    with pytest.raises(ValueError, match="`task_experts` must be a number, or"):
        CustomizedGateControl(["left", "right"], task_experts, [Dense(3)])


def test_another_structure_than_it_was_built_for():
    layer = CustomizedGateControl(["left", "right"], 1, 1, units=3)
    x = keras.Input((6,))
    layer(x)
    with pytest.raises(ValueError, match="built for another structure"):
        layer({"left": x, "right": x, "shared": x})


@pytest.mark.parametrize(
    "given",
    [
        [inputs(), inputs()],
        {"left": inputs(), "right": inputs()},
        {"left": inputs(), "right": inputs(), "common": inputs()},
    ],
    ids=["list", "without shared", "other names"],
)
def test_other_streams(given):
    layer = CustomizedGateControl(["left", "right"], 1, 1, units=3)
    with pytest.raises(ValueError, match="The input must be one tensor or"):
        layer(given)
