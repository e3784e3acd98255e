"""The same training in graphs, in eager mode, by XLA, in half precision."""

import functools

import keras
import nets
import numpy as np
import pytest
from cases import STRATEGIES

import mtlkeras
from mtlkeras import strategies

TASKS = nets.TASKS
every_strategy = pytest.mark.parametrize("case", STRATEGIES, ids=repr)
BY_ID = {case.id: case for case in STRATEGIES}


def network(dropout):
    """One small layer as trunk, and dropout."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, activation="tanh", name="trunk")(inputs)
    x = keras.layers.Dropout(dropout, seed=3)(x)
    return mtlkeras.MultiTaskModel(
        inputs,
        {name: keras.layers.Dense(1, name=f"head_{name}")(x) for name in TASKS},
    )


def partly_labelled():
    x, y = nets.regression_data(rows=24)
    y["left"][8:16] = np.nan
    y["middle"][:5] = np.nan
    return x, y


def train(case, epochs=2, dropout=0.1, **options):
    """Two epochs of three batches; the end state and the history."""
    model = network(dropout)
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=nets.losses(),
        strategy=case.strategy(),
        **options,
    )
    x, y = partly_labelled()
    history = model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0
    )
    measured = getattr(model.update_strategy.state, "variables", [])
    state = nets.values(model.variables + model.optimizer.variables + measured)
    return state, history.history


@every_strategy
def test_eager_mode_twice_and_graph_mode(case):
    """Two runs end with the same bits, those of a graph close to them."""
    state, logs = train(case, run_eagerly=True)
    again, logs_again = train(case, run_eagerly=True)
    nets.assert_same_bits(state, again)
    graph, graph_logs = train(case, steps_per_execution=3)
    for a, b in zip(state, graph, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert list(logs) == list(graph_logs)
    for key, values in logs.items():
        np.testing.assert_array_equal(values, logs_again[key], key)
        np.testing.assert_allclose(values, graph_logs[key], rtol=1e-4)


@pytest.mark.parametrize(
    "id", ["alternating", "alternating_shuffled", "random_groups_step"]
)
def test_steps_per_execution_changes_no_bit(id):
    state, logs = train(BY_ID[id])
    again, logs_again = train(BY_ID[id], steps_per_execution=3)
    nets.assert_same_bits(state, again)
    for key, values in logs.items():
        np.testing.assert_array_equal(values, logs_again[key], key)


@pytest.mark.parametrize(
    "id",
    [
        "joint",
        "alternating",
        "alternating_shuffled",
        "random_groups_step",
        "sampled",
        "multi_adaptive",
        "affinity_groups",
    ],
)
def test_xla(id):
    """The same groups visited, so the same counts; weights close.

    Without dropout: XLA draws other masks, also for stock Keras.
    """
    state, logs = train(BY_ID[id], dropout=0.0, run_eagerly=True)
    compiled, compiled_logs = train(BY_ID[id], dropout=0.0, jit_compile=True)
    for a, b in zip(state, compiled, strict=True):
        if np.issubdtype(a.dtype, np.integer):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for key, values in logs.items():
        np.testing.assert_allclose(compiled_logs[key], values, rtol=1e-3)


@pytest.mark.parametrize("id", ["alternating", "grouped", "round_robin"])
def test_train_on_batch_is_fit_batch_by_batch(id):
    (fitted, _) = train(BY_ID[id], epochs=1, run_eagerly=True)
    model = network(dropout=0.1)
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=nets.losses(),
        strategy=BY_ID[id].strategy(),
        run_eagerly=True,
    )
    x, y = partly_labelled()
    for start in range(0, 24, 8):
        rows = slice(start, start + 8)
        model.train_on_batch(x[rows], {k: v[rows] for k, v in y.items()})
    nets.assert_same_bits(
        nets.values(model.variables + model.optimizer.variables), fitted
    )


# -- half precision ---------------------------------------------------------


@pytest.fixture
def policy(request):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy(before)


half = pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)


@every_strategy
@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_half_precision_is_close_to_float32(case, policy):
    close_to_float32(case, "mixed_bfloat16", tolerance=3e-2)
    close_to_float32(case, policy, tolerance=1e-2)


@functools.cache
def trained_with_momentum(case, policy):
    """Momentum does not blow up the rounding of small numbers."""
    keras.mixed_precision.set_dtype_policy(policy)
    x, y = partly_labelled()
    model = nets.mlp()
    initial = nets.values(model.trainable_variables)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=nets.losses(),
        strategy=case.strategy(),
        run_eagerly=True,
    )
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return initial, nets.values(model.trainable_variables), history.history


def close_to_float32(case, policy, tolerance):
    initial, weights, logs = trained_with_momentum(case, policy)
    _, expected, expected_logs = trained_with_momentum(case, "float32")
    for a, b, start in zip(weights, expected, initial, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=tolerance)
        if np.abs(b - start).max() > tolerance:
            assert np.abs(a - start).max() > tolerance / 2
    for key, values in expected_logs.items():
        np.testing.assert_allclose(logs[key], values, atol=5 * tolerance)


@half
@every_strategy
def test_an_overflow_halves_the_scale_of_its_own_clone(case, policy):
    """A gradient that overflows only when it is scaled by 2 ** 15.

    The update is left out, the task is not called bad, the others go on.
    """
    model = nets.mlp()
    model.compile(
        keras.optimizers.SGD(1e-6),
        loss=nets.losses(),
        strategy=case.strategy(),
        run_eagerly=True,
        on_nonfinite="raise",
    )
    x, y = nets.regression_data(rows=8)
    groups = case.visits(TASKS, 0)
    bad_slot, bad_group = groups[-1]
    bad = bad_group[0]
    y[bad] += 1e4
    initial = 2.0**15
    before = {
        layer.name: nets.values(layer.trainable_weights)
        for layer in model.layers
    }
    model.train_on_batch(x, y)
    scales = {
        clone.name: float(clone.dynamic_scale)
        for clone in getattr(model.optimizer, "optimizers", [model.optimizer])
    }
    strategy = case.strategy()
    halved = {name for name, scale in scales.items() if scale == initial / 2}
    assert {scale for scale in scales.values()} <= {initial, initial / 2}
    if strategy.regroups != "never":
        # The position's clone, and the head's own.
        bad_slot = bad_slot if strategy.task_slots else 0
        suffixes = (f"_group_{bad_slot}", f"_{bad}")
        assert {name for name in scales if name.endswith(suffixes)} == halved
        assert len(halved) == 2
    elif case.id == "joint" or not strategy.task_slots:
        assert len(scales) == len(halved) == 1
    else:
        (clone,) = halved
        assert clone == model.optimizer.optimizers[bad_slot].name
    # Nothing of the overflow arrives, and the other tasks are trained.
    for name in TASKS:
        head = model.get_layer(f"head_{name}")
        kept = all(
            np.array_equal(a, b)
            for a, b in zip(
                nets.values(head.trainable_weights),
                before[head.name],
                strict=True,
            )
        )
        visited = {name for _, group in groups for name in group}
        rests = name not in visited or name == bad
        if strategy.regroups == "never":
            rests = rests or name in bad_group
        assert kept == rests, name
    for value in nets.values(model.variables):
        assert np.isfinite(value).all()


@half
def test_scaling_can_be_left_out(policy):
    model = nets.mlp()
    model.compile(
        keras.optimizers.SGD(0.1),
        loss=nets.losses(),
        strategy=strategies.Alternating(),
        auto_scale_loss=False,
    )
    for clone in model.optimizer.optimizers:
        assert not isinstance(clone, keras.optimizers.LossScaleOptimizer)
