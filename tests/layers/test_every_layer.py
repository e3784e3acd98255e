"""What holds for every sharing layer; `cases.LAYERS` says which there are."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import LAYER_KINDS, LAYERS
from nets import Opaque, assert_same_bits, regression_data, values

from mtlkeras import MultiTaskModel

EVERY = pytest.mark.parametrize("case", LAYERS, ids=repr)
EVERY_KIND = pytest.mark.parametrize("case", LAYER_KINDS, ids=repr)
PAIR = ("left", "right")


def perturb(layer, seed=0):
    """Other weights than those that a layer starts with."""
    rng = np.random.default_rng(seed)
    for v in layer.trainable_variables:
        v.assign(v + rng.normal(0.0, 0.5, v.shape))


def flat(outputs):
    return [
        keras.ops.convert_to_numpy(output)
        for output in keras.tree.flatten(outputs)
    ]


def built(case, **arguments):
    layer = case.layer(**arguments)
    layer(case.inputs())
    perturb(layer)
    return layer


def network(case, cls=MultiTaskModel, seed=0):
    """Dense layers, the layer under test, and a head per task."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="features")
    streams = case.map_inputs(
        lambda channels: keras.layers.Dense(channels, "sigmoid")(inputs)
    )
    found = keras.tree.flatten(case.layer()(streams))
    # A layer for one task: the other one goes past it.
    found += keras.tree.flatten(streams)[-1:] if len(found) == 1 else []
    names = (*PAIR, "third")[: len(found)]
    model = cls(
        inputs,
        {
            name: keras.layers.Dense(1, name=f"head_{name}")(x)
            for name, x in zip(names, found, strict=True)
        },
    )
    return model


def train(model, strategy=None):
    """An epoch of one batch; returns the history."""
    inner = model.inner if isinstance(model, Opaque) else model
    names = tuple(inner.output)
    x, y = regression_data(names, rows=8)
    given = {} if strategy is None else {"strategy": strategy}
    model.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        loss=dict.fromkeys(names, "mse"),
        run_eagerly=True,
        **given,
    )
    return model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history


# -- configuration and saving --------------------------------------------------


@EVERY
def test_config_round_trip(case):
    layer = case.layer()
    config = layer.get_config()
    assert json.loads(json.dumps(config)) == config
    parameters = [
        p.name
        for p in inspect.signature(type(layer)).parameters.values()
        if p.kind == p.POSITIONAL_OR_KEYWORD
    ]
    assert set(parameters) <= set(config)
    for name in parameters:
        assert hasattr(layer, name)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(copy) is type(layer)
    assert copy.get_config() == config
    # Built from the config alone, it has the variables of a called one.
    layer(case.inputs())
    copy.build_from_config(json.loads(json.dumps(layer.get_build_config())))
    assert [v.shape for v in copy.variables] == [
        v.shape for v in layer.variables
    ]


@EVERY
def test_keras_file(case, tmp_path):
    model = network(case)
    perturb(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same_bits(values(loaded.weights), values(model.weights))
    x, _ = regression_data(PAIR, rows=5)
    assert_same_bits(flat(loaded(x)), flat(model(x)))


# -- shapes, dtypes, compilation -----------------------------------------------


@EVERY
@pytest.mark.parametrize("positions", [(), (3,), (3, 2)], ids=str)
def test_shapes_with_any_batch_size(case, positions):
    layer = case.layer()
    symbols = case.map_inputs(lambda c: keras.Input((*positions, c)))
    outputs = layer(symbols)
    for output in keras.tree.flatten(outputs):
        assert output.shape[0] is None
    model = keras.Model(keras.tree.flatten(symbols), outputs)
    for batch_size in (1, 4):
        inputs = case.inputs(batch_size, positions)
        found = model(keras.tree.flatten(inputs))
        keras.tree.assert_same_structure(found, outputs)
        expected = layer.compute_output_shape(
            keras.tree.map_structure(lambda x: x.shape, inputs)
        )
        expected = keras.tree.map_shape_structure(tuple, expected)
        assert expected == keras.tree.map_structure(
            lambda x: tuple(x.shape), found
        )
        for symbol, x in zip(
            keras.tree.flatten(outputs),
            keras.tree.flatten(found),
            strict=True,
        ):
            assert tuple(x.shape[1:]) == tuple(symbol.shape[1:])
            assert x.dtype == symbol.dtype


@EVERY
@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("mixed_float16", 4e-3), ("mixed_bfloat16", 3e-2), ("float64", 1e-5)],
)
def test_precision_is_that_of_the_policy(case, policy, tolerance):
    layer, reference = built(case, dtype=policy), built(case)
    for v in layer.variables:
        # Experts that are given as layers have a policy of their own.
        assert v.dtype in (layer.variable_dtype, "float32")
    layer.set_weights(reference.get_weights())
    for output, expected in zip(
        keras.tree.flatten(layer(case.inputs())),
        flat(reference(case.inputs())),
        strict=True,
    ):
        assert output.dtype == layer.compute_dtype
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")),
            expected,
            rtol=tolerance,
            atol=tolerance,
        )


def step(layer, inputs):
    """Outputs and gradients of a layer, `training=True`."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        total = tf.add_n(
            [tf.reduce_sum(x**2) for x in tf.nest.flatten(outputs)]
        )
        total += tf.add_n([tf.zeros([]), *layer.losses])
    sources = tf.nest.flatten(inputs)
    sources += [v.value for v in layer.trainable_variables]
    return outputs, tape.gradient(total, sources)


@EVERY
def test_xla_gives_the_same(case):
    layer = built(case)
    state = values(layer.variables)
    inputs = tf.nest.map_structure(tf.constant, case.inputs())
    outputs, gradients = step(layer, inputs)
    after = values(layer.variables)
    for v, value in zip(layer.variables, state, strict=True):
        v.assign(value)
    compiled = tf.function(
        lambda x: step(layer, x), jit_compile=True, autograph=False
    )
    found, found_gradients = compiled(inputs)
    for a, b in zip(flat(found), flat(outputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(g is not None for g in gradients)
    for a, b in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(values(layer.variables), after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# -- masks ---------------------------------------------------------------------


@EVERY
def test_masks_pass_through(case):
    mask = np.array([[True, True, False], [True, False, False]])
    inputs = case.inputs(2, (3,))
    # What is masked must not matter where nothing is.
    other = keras.tree.map_structure(
        lambda x: np.where(mask[..., None], x, 9.0).astype(x.dtype), inputs
    )
    layer = case.layer()
    found = []
    for given in (inputs, other):
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, given)
        for tensor in keras.tree.flatten(tensors):
            tensor._keras_mask = keras.ops.convert_to_tensor(mask)
        outputs = layer(tensors)
        for output in keras.tree.flatten(outputs):
            np.testing.assert_array_equal(output._keras_mask, mask)
        found.append([output[mask] for output in flat(outputs)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@EVERY
def test_masks_pass_through_a_functional_model(case):
    mask = np.array([[True, True, False], [True, False, False]])
    symbols = case.map_inputs(lambda channels: keras.Input((3, channels)))
    outputs = case.layer()(
        keras.tree.map_structure(keras.layers.Masking(-1.0), symbols)
    )
    for output in keras.tree.flatten(outputs):
        assert output._keras_mask is not None
    model = keras.Model(keras.tree.flatten(symbols), outputs)
    inputs = [
        np.where(mask[..., None], x, -1.0)
        for x in keras.tree.flatten(case.inputs(2, (3,)))
    ]
    for output in keras.tree.flatten(model(inputs)):
        np.testing.assert_array_equal(output._keras_mask, mask)


@EVERY
def test_no_mask_without_one(case):
    for output in keras.tree.flatten(case.layer()(case.inputs(2, (3,)))):
        assert getattr(output, "_keras_mask", None) is None


# -- in a MultiTaskModel -------------------------------------------------------


@EVERY_KIND
def test_joint_is_stock_keras(case):
    stock, mine = network(case, keras.Model), network(case)
    expected, history = train(stock), train(mine, "joint")
    assert_same_bits(values(mine.weights), values(stock.weights))
    assert history == expected


@EVERY
def test_tasks_train_what_their_gradients_reach(case):
    """As found by tracing gradients, where no graph is known."""
    model, opaque = network(case), Opaque(network(case, keras.Model))
    before = values(model.trainable_variables)
    history = train(model, "alternating")
    expected = train(opaque, "alternating")
    assert set(history) == set(expected)

    def places(variables, model):
        ids = [id(v) for v in model.trainable_variables]
        return [ids.index(id(v)) for v in variables]

    assert places(model.shared_variables, model) == places(
        opaque.shared_variables, opaque
    )
    for name in model.task_names:
        own = places(model.task_variables(name), model)
        assert own
        assert own == places(opaque.task_variables(name), opaque)
    for v, expected, old in zip(
        model.trainable_variables,
        opaque.trainable_variables,
        before,
        strict=True,
    ):
        np.testing.assert_allclose(v, expected, 1e-5, 1e-6, err_msg=v.path)
        assert (np.array(v) != old).any(), v.path


@EVERY_KIND
def test_half_precision_training(case):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(case)
    finally:
        keras.config.set_dtype_policy("float32")
    before = values(model.trainable_variables)
    history = train(model, "alternating")
    assert np.isfinite(history["loss"]).all()
    for v, old in zip(model.trainable_variables, before, strict=True):
        assert v.dtype == "float32"
        assert np.isfinite(v).all()
        assert (np.array(v) != old).any(), v.path
