"""The container of clones against T separate stock optimizers.

The gradients are given numbers, the same for both sides, so nothing but the
update is compared; the variables are float64 where Keras's formula allows it.
"""

import contextlib
import copy
import functools

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf

import mtlkeras
from mtlkeras.backend.tensorflow.fused import FusedUpdate, fused_update
from mtlkeras.optimizers import PerTaskOptimizer

TASKS = 3
SHARED = [0, 1]
SLOTS = [[*SHARED, 2 + task] for task in range(TASKS)]
RATE = 2.0**-6  # learning rates are float32 variables, so take exact ones


@contextlib.contextmanager
def floatx(dtype):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def make_variables(dtype="float64"):
    """A shared kernel and bias, then a head for each task."""
    rng = np.random.default_rng(5)
    shapes = [(4, 3), (3,)] + [(3, 2)] * TASKS
    names = ["kernel", "bias"] + [f"head_{task}" for task in range(TASKS)]
    return [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=name)
        for shape, name in zip(shapes, names, strict=True)
    ]


def gradients(batch, task, variables):
    """Of very different scales, as those of real tasks."""
    rng = np.random.default_rng([batch, task])
    scale = 100.0**task
    return [
        tf.constant(scale * rng.normal(size=v.shape), v.dtype)
        for v in variables
    ]


def run_container(
    template, batches=5, rests=lambda batch, task: False, dtype="float64", **kw
):
    variables = make_variables(dtype)
    optimizer = PerTaskOptimizer(template, slots=SLOTS, **kw)
    optimizer.build(variables)
    go_on(optimizer, variables, range(batches), rests)
    return optimizer, variables


def go_on(optimizer, variables, batches, rests=lambda batch, task: False):
    for batch in batches:
        updated = set()
        for task, slot in enumerate(SLOTS):
            if rests(batch, task):
                continue
            own = [variables[i] for i in slot]
            optimizer.apply_slot(
                task,
                gradients(batch, task, own),
                own,
                first_update=lambda v, seen=frozenset(updated): (
                    id(v) not in seen
                ),
            )
            updated |= {id(v) for v in own}
        optimizer.finish_batch()


def run_separate(
    make,
    batches=5,
    rests=lambda batch, task: False,
    dtype="float64",
    before_batch=lambda batch, optimizers, variables: None,
):
    """The reference: T stock optimizers, one after the other."""
    variables = make_variables(dtype)
    optimizers = [make() for _ in SLOTS]
    for optimizer, slot in zip(optimizers, SLOTS, strict=True):
        optimizer.build([variables[i] for i in slot])
    for batch in range(batches):
        before_batch(batch, optimizers, variables)
        for task, slot in enumerate(SLOTS):
            if rests(batch, task):
                continue
            own = [variables[i] for i in slot]
            optimizers[task].apply(gradients(batch, task, own), own)
    return optimizers, variables


def state(optimizer):
    return nets.values(v for v in optimizer.variables)


def assert_close(first, second, rtol=1e-12):
    for a, b in zip(nets.values(first), nets.values(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=0)


OPTIMIZERS = {
    "sgd": lambda **kw: keras.optimizers.SGD(RATE, **kw),
    "momentum": lambda **kw: keras.optimizers.SGD(RATE, 0.9, True, **kw),
    "adam": lambda **kw: keras.optimizers.Adam(RATE, **kw),
    "amsgrad": lambda **kw: keras.optimizers.Adam(RATE, amsgrad=True, **kw),
    "rmsprop": lambda **kw: keras.optimizers.RMSprop(
        RATE, momentum=0.5, centered=True, **kw
    ),
    "lion": lambda **kw: keras.optimizers.Lion(RATE, **kw),
    "adafactor": lambda **kw: keras.optimizers.Adafactor(RATE, **kw),
    "muon": lambda **kw: keras.optimizers.Muon(
        RATE, weight_decay=None, adam_weight_decay=None, **kw
    ),
    "nadam": lambda **kw: keras.optimizers.Nadam(RATE, **kw),
    "scaled": lambda **kw: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(RATE, **kw), initial_scale=4.0
    ),
}


def dtype_of(name):
    # Newton-Schulz iterations of Keras's Muon mix in float32.
    return "float32" if name == "muon" else "float64"


# -- construction -------------------------------------------------------------


def test_clones_slots_and_names():
    template = keras.optimizers.Adam(RATE, beta_1=0.8, name="mine")
    variables = make_variables()
    optimizer = PerTaskOptimizer(
        template, slots=SLOTS, names=["a", "b", "c"], factors=[1, 2, 3]
    )
    optimizer.build(variables)
    assert not template.built
    assert optimizer.slots == tuple(map(tuple, SLOTS))
    assert optimizer.factors == (1.0, 2.0, 3.0)
    assert [c.name for c in optimizer.optimizers] == [
        "mine_a",
        "mine_b",
        "mine_c",
    ]
    for clone, slot in zip(optimizer.optimizers, SLOTS, strict=True):
        assert type(clone) is keras.optimizers.Adam
        assert clone is not template
        assert clone.beta_1 == 0.8
        held = [v for v in clone.variables if tuple(v.shape)]
        shapes = [variables[i].shape for i in slot for _ in range(2)]
        assert sorted(tuple(v.shape) for v in held) == sorted(
            map(tuple, shapes)
        )
    # Every variable of state once, the clones' among the container's.
    all_ids = [id(v) for v in optimizer.variables]
    assert len(set(all_ids)) == len(all_ids)
    for clone in optimizer.optimizers:
        assert {id(v) for v in clone.variables} <= set(all_ids)
    # The variables that are trained are no state.
    assert not {id(v) for v in variables} & set(all_ids)


def test_defaults_are_one_clone_on_everything():
    variables = make_variables()
    optimizer = PerTaskOptimizer(keras.optimizers.Adam(RATE))
    optimizer.build(variables)
    assert optimizer.slots == (tuple(range(len(variables))),)
    assert optimizer.names == ("0",)


@pytest.mark.parametrize("name", ["adam", "momentum", "muon", "scaled"])
def test_a_single_slot_is_stock_keras(name):
    """`apply` as any Keras optimizer; a container of one is no container."""
    kw = {} if name == "muon" else {"weight_decay": 0.01}
    kw.update(use_ema=True, ema_overwrite_frequency=3, global_clipnorm=1.0)
    if name == "scaled":
        # Keras's own loss scaling keeps no average of the weights.
        kw = {"weight_decay": 0.01, "clipnorm": 1.0}
    runs = []
    for wrap in (PerTaskOptimizer, lambda optimizer: optimizer):
        variables = make_variables("float32")
        optimizer = wrap(OPTIMIZERS[name](**kw))
        optimizer.build(variables)
        for batch in range(7):
            taken = gradients(batch, 0, variables)
            optimizer.apply(taken, variables)
            assert int(optimizer.iterations) == batch + 1
        optimizer.finalize_variable_values(variables)
        runs.append(nets.values(variables))
    nets.assert_same_bits(*runs)


def test_config_round_trip():
    optimizer = PerTaskOptimizer(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(RATE, 100),
            weight_decay=0.02,
            use_ema=True,
            clipnorm=1.0,
            gradient_accumulation_steps=2,
        ),
        slots=SLOTS,
        names=["a", "b", "c"],
        factors=[0.5, 1.0, 2.0],
        fused=False,
        name="container",
    )
    serialized = keras.saving.serialize_keras_object(optimizer)
    # Keras's own `from_config` changes the config that it is given.
    for again in (
        keras.saving.deserialize_keras_object(copy.deepcopy(serialized)),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.optimizers.get(copy.deepcopy(serialized)),
    ):
        assert type(again) is PerTaskOptimizer
        assert again.name == "container"
        assert again.slots == optimizer.slots
        assert again.names == optimizer.names
        assert again.factors == optimizer.factors
        assert again.fused is False
        assert again.use_ema
        for clone in again.optimizers:
            assert type(clone) is keras.optimizers.AdamW
            assert clone.weight_decay == 0.02
            assert clone.clipnorm == 1.0
            assert clone.gradient_accumulation_steps == 2
        assert keras.saving.serialize_keras_object(again) == serialized


@pytest.mark.parametrize("name", ["adam", "adafactor", "momentum", "scaled"])
def test_state_is_saved_and_loaded(name, tmp_path):
    """Inside of a stock model's `.keras` file; it goes on with the bits."""
    kw = {} if name == "scaled" else {"use_ema": True}
    inputs = keras.Input((4,))
    trunk = keras.layers.Dense(3)(inputs)
    heads = [keras.layers.Dense(2, use_bias=False)(trunk) for _ in range(TASKS)]
    model = keras.Model(inputs, heads)
    model.compile(
        PerTaskOptimizer(OPTIMIZERS[name](**kw), slots=SLOTS), loss="mse"
    )
    model.optimizer.build(model.trainable_variables)
    go_on(model.optimizer, model.trainable_variables, range(3))
    model.optimizer.draw.assign(17)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.draw) == 17
    assert int(loaded.optimizer.iterations) == 3
    nets.assert_same_bits(state(loaded.optimizer), state(model.optimizer))
    for each in (model, loaded):
        go_on(each.optimizer, each.trainable_variables, range(3, 6))
    nets.assert_same_bits(state(loaded.optimizer), state(model.optimizer))
    nets.assert_same_bits(
        nets.values(loaded.trainable_variables),
        nets.values(model.trainable_variables),
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PerTaskOptimizer("adam"), "instance"),
        (lambda: PerTaskOptimizer(keras.optimizers.Adam), "instance"),
        (
            lambda: PerTaskOptimizer(
                keras.optimizers.SGD(), slots=SLOTS, names=["a"]
            ),
            "equal length",
        ),
        (
            lambda: PerTaskOptimizer(
                keras.optimizers.SGD(), slots=SLOTS, factors=[1.0, 2.0]
            ),
            "equal length",
        ),
        (
            lambda: PerTaskOptimizer(
                keras.optimizers.SGD(), slots=SLOTS
            ).configure(SLOTS),
            "once",
        ),
        (
            lambda: PerTaskOptimizer(
                keras.optimizers.SGD(), slots=[[0], [9]]
            ).build(make_variables()),
            "10 variables",
        ),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_apply_with_several_slots_says_what_to_use():
    variables = make_variables()
    optimizer = PerTaskOptimizer(keras.optimizers.SGD(RATE), slots=SLOTS)
    before = nets.values(variables)
    with pytest.raises(ValueError, match="apply_slot"):
        optimizer.apply([tf.ones_like(v.value) for v in variables], variables)
    nets.assert_same_bits(nets.values(variables), before)


def test_foreign_variables_are_refused():
    optimizer, variables = run_container(OPTIMIZERS["adam"](), batches=1)
    foreign_head = variables[SLOTS[1][-1]]
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply_slot(
            0, [tf.ones_like(foreign_head.value)], [foreign_head]
        )


# -- equal to separate optimizers ---------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.1},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_equals_separate_stock_optimizers(options):
    """Bit for bit, for every optimizer, with tasks that rest at times."""

    def rests(batch, task):
        return (batch, task) in {(1, 0), (2, 2), (3, 2)}

    for name, make in OPTIMIZERS.items():
        dtype = dtype_of(name)
        optimizer, variables = run_container(
            make(**options), rests=rests, dtype=dtype
        )
        separate, expected = run_separate(
            lambda make=make: make(**options), rests=rests, dtype=dtype
        )
        nets.assert_same_bits(nets.values(variables), nets.values(expected))
        for clone, stock in zip(optimizer.optimizers, separate, strict=True):
            nets.assert_same_bits(state(clone), state(stock))
        assert int(optimizer.iterations) == 5
        steps = options.get("gradient_accumulation_steps", 1)
        assert [int(c.iterations) for c in optimizer.optimizers] == [
            4 // steps,
            5 // steps,
            3 // steps,
        ]


def test_separate_is_not_shared():
    """The negative control: one stock optimizer for all tasks is far off."""
    for name in ("adam", "momentum", "rmsprop", "lion", "adafactor"):
        _, variables = run_container(OPTIMIZERS[name]())
        expected = make_variables()
        shared = OPTIMIZERS[name]()
        shared.build(expected)
        for batch in range(5):
            for task, slot in enumerate(SLOTS):
                own = [expected[i] for i in slot]
                shared.apply(gradients(batch, task, own), own)
        ours, theirs = variables[0].numpy(), expected[0].numpy()
        assert np.abs(ours - theirs).max() > RATE / 2, name


def test_adam_equals_numpy():
    """And Keras's Adam is what the formula says."""
    # Keras rounds the constants to float32 on their way: take exact ones.
    _, variables = run_container(
        OPTIMIZERS["adam"](epsilon=2.0**-20, beta_1=0.875, beta_2=0.9375),
        batches=6,
    )
    expected = nets.values(make_variables())
    m = [[np.zeros_like(expected[i]) for i in slot] for slot in SLOTS]
    v = [[np.zeros_like(expected[i]) for i in slot] for slot in SLOTS]
    for batch in range(6):
        for task, slot in enumerate(SLOTS):
            taken = gradients(batch, task, [expected[i] for i in slot])
            for j, (i, g) in enumerate(zip(slot, taken, strict=True)):
                g = g.numpy()
                m[task][j] = 0.875 * m[task][j] + 0.125 * g
                v[task][j] = 0.9375 * v[task][j] + 0.0625 * g**2
                correction = np.sqrt(1 - 0.9375 ** (batch + 1))
                correction /= 1 - 0.875 ** (batch + 1)
                expected[i] = expected[i] - RATE * correction * m[task][j] / (
                    np.sqrt(v[task][j]) + 2.0**-20
                )
    for a, b in zip(nets.values(variables), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def apply_all(optimizer, variables, all_taken):
    for task, slot in enumerate(SLOTS):
        optimizer.apply_slot(
            task, all_taken[task], [variables[i] for i in slot]
        )
    optimizer.finish_batch()


def test_in_a_graph():
    """The same numbers inside of `tf.function`, also under XLA."""
    _, expected = run_container(OPTIMIZERS["adam"](clipnorm=1.0), batches=3)
    for jit_compile in (False, True):
        variables = make_variables()
        optimizer = PerTaskOptimizer(
            OPTIMIZERS["adam"](clipnorm=1.0), slots=SLOTS
        )
        optimizer.build(variables)

        step = tf.function(
            functools.partial(apply_all, optimizer, variables),
            jit_compile=jit_compile,
        )
        for batch in range(3):
            step(
                [
                    gradients(batch, task, [variables[i] for i in slot])
                    for task, slot in enumerate(SLOTS)
                ]
            )
        assert_close(variables, expected)
        assert int(optimizer.iterations) == 3


# -- weight decay -------------------------------------------------------------

DECAY = 2.0**-3


def decay_once(excluded=()):
    """What a batch does once, before its updates, to every variable."""

    def before_batch(batch, optimizers, variables):
        for i, variable in enumerate(variables):
            if i not in excluded:
                variable.assign(variable - variable * DECAY * RATE)

    return before_batch


@pytest.mark.parametrize("excluded", [None, "by name", "by variable"])
@pytest.mark.parametrize("name", ["adam", "momentum", "lion", "scaled"])
def test_weight_decay_once_per_batch(name, excluded):
    variables = make_variables()
    template = OPTIMIZERS[name](weight_decay=DECAY)
    inner = getattr(template, "inner_optimizer", template)
    if excluded == "by name":
        inner.exclude_from_weight_decay(var_names=["bias", "head_1"])
    elif excluded == "by variable":
        inner.exclude_from_weight_decay(var_list=[variables[1], variables[3]])
    optimizer = PerTaskOptimizer(template, slots=SLOTS)
    optimizer.build(variables)
    go_on(optimizer, variables, range(5))
    _, expected = run_separate(
        OPTIMIZERS[name],
        before_batch=decay_once(() if excluded is None else (1, 3)),
    )
    assert_close(variables, expected, rtol=1e-11)
    # The control: T optimizers that decay by themselves do it T times.
    _, thrice = run_separate(lambda: OPTIMIZERS[name](weight_decay=DECAY))
    difference = variables[0].numpy() - thrice[0].numpy()
    assert np.abs(difference).max() > 1e-3


def test_weight_decay_before_the_first_update_that_happens():
    """The first task rests, so the decay is the second one's; once."""

    def rests(batch, task):
        return task == 0 or (batch == 1 and task == 1)

    _, variables = run_container(
        OPTIMIZERS["adam"](weight_decay=DECAY), batches=3, rests=rests
    )

    def before_batch(batch, optimizers, variables):
        for i in (0, 1, 3, 4):
            if (batch, i) != (1, 3):
                v = variables[i]
                v.assign(v - v * DECAY * RATE)

    _, expected = run_separate(
        OPTIMIZERS["adam"], batches=3, rests=rests, before_batch=before_batch
    )
    assert_close(variables, expected, rtol=1e-11)


@pytest.mark.parametrize("in_graph", [False, True])
def test_weight_decay_once_per_batch_in_a_custom_loop(in_graph):
    """Without `first_update` the container itself knows what has decayed."""
    variables = make_variables()
    optimizer = PerTaskOptimizer(
        keras.optimizers.SGD(RATE, weight_decay=DECAY), slots=SLOTS
    )
    optimizer.build(variables)
    before = nets.values(variables)

    def train_batch():
        for task, slot in enumerate(SLOTS):
            own = [variables[i] for i in slot]
            zeros = [tf.zeros_like(v.value) for v in own]
            optimizer.apply_slot(task, zeros, own)
        optimizer.finish_batch()

    step = tf.function(train_batch) if in_graph else train_batch
    for batch in (1, 2):
        step()
        for value, start in zip(nets.values(variables), before, strict=True):
            np.testing.assert_allclose(
                value, start * (1 - DECAY * RATE) ** batch, rtol=1e-14
            )


def test_weight_decay_by_a_tensor_condition():
    variables = make_variables()
    optimizer = PerTaskOptimizer(
        keras.optimizers.SGD(RATE, weight_decay=DECAY), slots=SLOTS
    )
    optimizer.build(variables)
    before = nets.values(variables)

    @tf.function
    def step(flag):
        own = [variables[i] for i in SLOTS[0]]
        optimizer.apply_slot(
            0,
            [tf.zeros_like(v.value) for v in own],
            own,
            first_update=lambda v: flag,
        )

    step(tf.constant(False))
    nets.assert_same_bits(nets.values(variables), before)
    step(tf.constant(True))
    for i in SLOTS[0]:
        np.testing.assert_allclose(
            variables[i].numpy(), before[i] * (1 - DECAY * RATE), rtol=1e-15
        )


# -- the average of the weights -----------------------------------------------


def averages(batches, momentum, overwrite=None):
    """The same run with the average written by hand, once per batch."""
    average = None

    def before_batch(batch, optimizers, variables):
        nonlocal average
        if batch:
            note(batch - 1, variables)

    def note(batch, variables):
        nonlocal average
        now = nets.values(variables)
        if batch == 0:
            average = now
        else:
            average = [
                momentum * a + (1 - momentum) * v
                for a, v in zip(average, now, strict=True)
            ]
        if overwrite and (batch + 1) % overwrite == 0:
            for variable, value in zip(variables, average, strict=True):
                variable.assign(value)

    _, variables = run_separate(
        OPTIMIZERS["adam"], batches, before_batch=before_batch
    )
    note(batches - 1, variables)
    return average, variables


@pytest.mark.parametrize("overwrite", [None, 3])
def test_average_of_weights_once_per_batch(overwrite):
    template = OPTIMIZERS["adam"](
        use_ema=True, ema_momentum=0.75, ema_overwrite_frequency=overwrite
    )
    optimizer, variables = run_container(template, batches=7)
    average, expected = averages(7, 0.75, overwrite)
    assert_close(variables, expected)
    optimizer.finalize_variable_values(variables)
    for ours, theirs in zip(nets.values(variables), average, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    # Kept once: one average per variable in all of the optimizer's state.
    held = [v for v in optimizer.variables if "average" in v.path]
    assert len(held) == len(variables)
    assert not any(clone.use_ema for clone in optimizer.optimizers)
    # The control: what a clone's own average would hold is something else.
    separate, other = run_separate(
        lambda: OPTIMIZERS["adam"](use_ema=True, ema_momentum=0.75), batches=7
    )
    separate[0].finalize_variable_values([other[i] for i in SLOTS[0]])
    assert np.abs(other[0].numpy() - average[0]).max() > 1e-3


# -- the learning rate --------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "scaled"])
def test_learning_rate_of_all_clones(name):
    variables = make_variables()
    optimizer = PerTaskOptimizer(
        OPTIMIZERS[name](), slots=SLOTS, factors=[0.5, 1.0, 2.0]
    )
    optimizer.build(variables)
    assert float(optimizer.learning_rate) == RATE
    go_on(optimizer, variables, range(2))
    optimizer.learning_rate = RATE / 4
    assert float(optimizer.learning_rate) == RATE / 4
    assert [float(c.learning_rate) for c in optimizer.optimizers] == [
        RATE / 4
    ] * TASKS
    go_on(optimizer, variables, range(2, 4))

    def before_batch(batch, optimizers, variables):
        for stock, factor in zip(optimizers, [0.5, 1.0, 2.0], strict=True):
            rate = RATE if batch < 2 else RATE / 4
            stock.learning_rate = factor * rate

    _, expected = run_separate(
        OPTIMIZERS[name], batches=4, before_batch=before_batch
    )
    assert_close(variables, expected)


def test_learning_rate_before_the_slots_are_known():
    optimizer = PerTaskOptimizer(OPTIMIZERS["adam"]())
    optimizer.learning_rate = RATE / 2
    assert float(optimizer.learning_rate) == RATE / 2
    optimizer.build(make_variables())
    assert float(optimizer.learning_rate) == RATE / 2


def cosine():
    return keras.optimizers.schedules.CosineDecay(RATE, 8, alpha=0.01)


@pytest.mark.parametrize("scaled", [False, True])
def test_schedule_reads_batches(scaled):
    """Not a clone's updates: the first task rests in most batches."""

    def rests(batch, task):
        return task == 0 and batch != 4

    def make(rate):
        optimizer = keras.optimizers.Adam(rate)
        if scaled:
            return keras.optimizers.LossScaleOptimizer(optimizer, 2.0)
        return optimizer

    def rate_at(batch):
        return RATE * (0.99 * 0.5 * (1 + np.cos(np.pi * batch / 8)) + 0.01)

    def before_batch(batch, optimizers, variables):
        for stock in optimizers:
            stock.learning_rate = rate_at(batch)

    optimizer, variables = run_container(make(cosine()), 6, rests)
    np.testing.assert_allclose(
        float(optimizer.learning_rate), rate_at(6), rtol=1e-5
    )
    _, expected = run_separate(
        lambda: make(RATE), 6, rests, before_batch=before_batch
    )
    assert_close(variables, expected, rtol=2e-5)
    # The control: stock optimizers with the schedule count their own updates.
    _, other = run_separate(lambda: make(cosine()), 6, rests)
    head = SLOTS[0][-1]
    moved = np.abs(other[head].numpy() - expected[head].numpy()).max()
    assert moved > 0.1 * RATE
    with pytest.raises(TypeError, match="schedule"):
        optimizer.learning_rate = 0.1


def test_callable_learning_rate():
    rate = tf.Variable(RATE)

    def current_rate():
        return rate

    optimizer, variables = run_container(
        keras.optimizers.SGD(current_rate), batches=1, factors=[0.5, 1.0, 2.0]
    )
    rate.assign(RATE / 8)
    go_on(optimizer, variables, range(1, 2))

    def before_batch(batch, optimizers, variables):
        for stock, factor in zip(optimizers, [0.5, 1.0, 2.0], strict=True):
            stock.learning_rate = factor * (RATE if batch == 0 else RATE / 8)

    _, expected = run_separate(
        OPTIMIZERS["sgd"], batches=2, before_batch=before_batch
    )
    assert_close(variables, expected)


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "adam", "rmsprop", "lion", "muon", "scaled"]
)
def test_factors_scale_the_update(name):
    """As another learning rate would; decay and the visible rate stay."""
    factors = [0.5, 1.0, 4.0]
    kw = {} if name == "muon" else {"weight_decay": DECAY}
    optimizer, variables = run_container(
        OPTIMIZERS[name](**kw), factors=factors, dtype=dtype_of(name)
    )
    assert float(optimizer.learning_rate) == RATE
    assert [float(c.learning_rate) for c in optimizer.optimizers] == [
        RATE
    ] * TASKS
    decay = decay_once() if kw else lambda *arguments: None

    def before_batch(batch, optimizers, variables):
        if batch == 0:
            for stock, factor in zip(optimizers, factors, strict=True):
                stock.learning_rate = factor * RATE
        decay(batch, optimizers, variables)

    _, expected = run_separate(
        OPTIMIZERS[name], dtype=dtype_of(name), before_batch=before_batch
    )
    assert_close(variables, expected, rtol=1e-5 if name == "muon" else 1e-11)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_shared_scale_scales_the_update_of_shared_variables(name):
    """As another learning rate would; Nadam's common state moves once."""
    dtype = dtype_of(name)
    make = OPTIMIZERS[name]
    _, variables = run_container(make(), dtype=dtype, shared_scale=0.25)
    expected = make_variables(dtype)
    optimizers = [(make(), make()) for _ in SLOTS]
    for (low, full), (*shared, head) in zip(optimizers, SLOTS, strict=True):
        low.learning_rate = 0.25 * RATE
        low.build([expected[i] for i in shared])
        full.build([expected[head]])
    for batch in range(5):
        for task, slot in enumerate(SLOTS):
            own = [expected[i] for i in slot]
            taken = gradients(batch, task, own)
            low, full = optimizers[task]
            low.apply(taken[:-1], own[:-1])
            full.apply(taken[-1:], own[-1:])
    assert_close(variables, expected, rtol=1e-5 if name == "muon" else 1e-11)


def test_factors_with_a_schedule():
    factors = [0.5, 1.0, 4.0]
    _, variables = run_container(
        keras.optimizers.Adafactor(cosine(), relative_step=False),
        factors=factors,
    )
    optimizer, _ = run_container(
        keras.optimizers.Adafactor(cosine(), relative_step=False), batches=0
    )

    def before_batch(batch, optimizers, variables):
        rate = float(cosine()(batch))
        for stock, factor in zip(optimizers, factors, strict=True):
            stock.learning_rate = factor * rate

    _, expected = run_separate(
        lambda: keras.optimizers.Adafactor(RATE, relative_step=False),
        before_batch=before_batch,
    )
    assert_close(variables, expected, rtol=1e-6)


# -- loss scaling -------------------------------------------------------------


def scaled_container():
    variables = make_variables("float32")
    optimizer = PerTaskOptimizer(
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(RATE),
            initial_scale=2.0**10,
            dynamic_growth_steps=3,
        ),
        slots=SLOTS,
    )
    optimizer.build(variables)
    return optimizer, variables


def test_every_clone_has_its_own_loss_scale():
    optimizer, variables = scaled_container()
    loss = tf.constant(3.0)

    def scales():
        return [
            float(optimizer.scale_loss(loss, slot)) / 3.0
            for slot in range(TASKS)
        ]

    def apply(slot, bad=None):
        own = [variables[i] for i in SLOTS[slot]]
        taken = gradients(0, slot, own)
        if bad is not None:
            taken[1] = taken[1] * bad
        optimizer.apply_slot(slot, taken, own)

    assert scales() == [2.0**10] * TASKS
    for bad in (float("inf"), float("nan")):
        before = nets.values(variables)
        clone = optimizer.optimizers[1]
        inner = state(clone.inner_optimizer)
        others = [state(optimizer.optimizers[k]) for k in (0, 2)]
        scale = scales()[1]
        apply(1, bad)
        # Halved, skipped, not counted; the other clones know nothing of it.
        assert scales() == [2.0**10, scale / 2, 2.0**10]
        nets.assert_same_bits(nets.values(variables), before)
        nets.assert_same_bits(state(clone.inner_optimizer), inner)
        for k, saved in zip((0, 2), others, strict=True):
            nets.assert_same_bits(state(optimizer.optimizers[k]), saved)
    for _ in range(3):
        apply(0)
    # Grows after `dynamic_growth_steps` good updates, by itself, too.
    assert scales() == [2.0**11, 2.0**8, 2.0**10]
    assert [int(c.iterations) for c in optimizer.optimizers] == [3, 0, 0]


def test_loss_scaling_is_undone_in_the_update():
    optimizer, variables = scaled_container()
    expected = make_variables("float32")
    stock = [keras.optimizers.Adam(RATE) for _ in SLOTS]
    for batch in range(3):
        for task, slot in enumerate(SLOTS):
            own = [variables[i] for i in slot]
            scale = float(optimizer.scale_loss(tf.constant(1.0), task))
            taken = gradients(batch, task, own)
            optimizer.apply_slot(task, [g * scale for g in taken], own)
            theirs = [expected[i] for i in slot]
            stock[task].apply(taken, theirs)
        optimizer.finish_batch()
    nets.assert_same_bits(nets.values(variables), nets.values(expected))


# -- resting ------------------------------------------------------------------


def apply_with_rest(optimizer, own, rests):
    optimizer.apply_slot(
        0, gradients(1, 0, own), own, resting=[(rests, own[-1:])]
    )


@pytest.mark.parametrize("in_graph", [False, True])
def test_resting_variables_keep_value_and_state(in_graph):
    """Weight, moments, accumulators; the rest of the slot goes on."""
    for name, make in OPTIMIZERS.items():
        if in_graph and name not in ("adam", "scaled"):
            continue
        kw = {"gradient_accumulation_steps": 2} if name == "adam" else {}
        dtype = dtype_of(name)
        optimizer, variables = run_container(make(**kw), 1, dtype=dtype)
        other, expected = run_container(make(**kw), 1, dtype=dtype)
        own = [variables[i] for i in SLOTS[0]]
        head = own[-1]
        clone = optimizer.optimizers[0]

        def state_of_head(clone=clone):
            inner = getattr(clone, "inner_optimizer", clone)
            return nets.values(v for v in inner.variables if "head_0" in v.path)

        step = functools.partial(apply_with_rest, optimizer, own)
        if in_graph:
            step = tf.function(step)
        before, held = head.numpy(), state_of_head()
        assert held or name == "sgd"
        step(tf.constant(True))
        np.testing.assert_array_equal(head.numpy(), before)
        nets.assert_same_bits(state_of_head(), held)
        step(tf.constant(True))
        step(tf.constant(False))
        step(tf.constant(False))
        assert (head.numpy() != before).all()
        assert name == "sgd" or any(
            (a != b).any() for a, b in zip(state_of_head(), held, strict=True)
        )
        # What does not rest is as without a resting head.
        theirs = [expected[i] for i in SLOTS[0]]
        for _ in range(4):
            other.apply_slot(0, gradients(1, 0, theirs), theirs)
        if name not in ("adam", "scaled") or not in_graph:
            nets.assert_same_bits(
                nets.values(own[:-1]), nets.values(theirs[:-1])
            )
        else:
            assert_close(own[:-1], theirs[:-1])


# -- carrying over ------------------------------------------------------------


def test_carry_over_keeps_batches_and_rate_and_starts_fresh():
    old, _ = run_container(OPTIMIZERS["adam"](), batches=4)
    old.learning_rate = RATE / 8
    variables = make_variables()
    new = PerTaskOptimizer(
        OPTIMIZERS["adam"](use_ema=True, ema_momentum=0.5), slots=SLOTS
    )
    new.build(variables)
    for variable in variables:
        variable.assign(variable * 2.0)
    new.carry_over(old)
    assert int(new.iterations) == 4
    assert float(new.learning_rate) == RATE / 8
    assert [int(c.iterations) for c in new.optimizers] == [0] * TASKS
    before = nets.values(variables)
    go_on(new, variables, range(4, 5))
    after = nets.values(variables)
    # A fresh Adam's first step: rate times sign.
    head = SLOTS[1][-1]
    taken = gradients(4, 1, [variables[i] for i in SLOTS[1]])[-1].numpy()
    np.testing.assert_allclose(
        after[head], before[head] - RATE / 8 * np.sign(taken), rtol=1e-6
    )
    # The average starts at the weights as they were carried over.
    new.finalize_variable_values(variables)
    for ours, a, b in zip(nets.values(variables), before, after, strict=True):
        np.testing.assert_allclose(ours, 0.5 * a + 0.5 * b, rtol=1e-12)


@pytest.mark.parametrize("accumulate", [None, 2])
def test_carry_over_from_a_stock_optimizer(accumulate):
    """Its batches, which under accumulation are more than its updates."""
    variables = make_variables()
    stock = keras.optimizers.Adam(RATE, gradient_accumulation_steps=accumulate)
    for batch in range(3):
        stock.apply(gradients(batch, 0, variables), variables)
    stock.learning_rate = RATE / 2
    new = PerTaskOptimizer(keras.optimizers.Adam(cosine()), slots=SLOTS)
    new.build(variables)
    new.carry_over(stock)
    assert int(new.iterations) == 3
    # A schedule is not a number to carry over: it goes on from the batch.
    np.testing.assert_allclose(
        float(new.learning_rate), float(cosine()(3)), rtol=1e-6
    )


# -- fused updates ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("adam", "ResourceApplyAdam"),
        ("momentum", "ResourceApplyKerasMomentum"),
        ("sgd", "ResourceApplyGradientDescent"),
    ],
)
def test_fused_equals_unfused(name, operation, monkeypatch):
    """Through a model; and `fused=False` really goes Keras's own way."""
    calls = []
    kernel = getattr(tf.raw_ops, operation)
    monkeypatch.setattr(
        tf.raw_ops, operation, lambda **kw: (calls.append(1), kernel(**kw))[1]
    )
    kw = {"weight_decay": 0.01, "use_ema": True, "clipnorm": 1.0}
    x, y = nets.regression_data(rows=32, dtype="float64")
    runs, used = [], []
    with floatx("float64"):
        for fused in (True, False):
            model = nets.mlp()
            model.compile(
                PerTaskOptimizer(OPTIMIZERS[name](**kw), fused=fused),
                loss=nets.losses(),
                strategy=mtlkeras.strategies.Alternating(
                    task_learning_rates={"left": 0.5}
                ),
                run_eagerly=True,
            )
            calls.clear()
            assert model.optimizer.fused is fused
            model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
            used.append(len(calls))
            runs.append(nets.values(model.trainable_variables))
    assert used[0] == 8 * 3 * 6  # batches, tasks, variables of a task
    assert used[1] == 0
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def half(variable):
    """A constraint that changes a variable whatever the update."""
    return variable * 0.5


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("name", "kw"),
    [
        ("adam", {}),
        ("adam", {"clipnorm": 1.0}),
        ("adam", {"weight_decay": 0.1}),
        ("adam", {"use_ema": True}),
        ("adam", {"gradient_accumulation_steps": 2}),
        ("adam", {"constraint": half}),
        ("sgd", {}),
        ("sgd", {"weight_decay": 0.1}),
        ("momentum", {}),
    ],
)
def test_fused_updates_leave_resting_variables(name, kw, gradient):
    """By the kernel's own scalars or put back: bit for bit, and state, too."""
    kw = dict(kw)
    constraint = kw.pop("constraint", None)
    runs = []
    for fused in (True, False):
        variables = make_variables()
        for v in variables:
            v.constraint = constraint
        optimizer = PerTaskOptimizer(
            OPTIMIZERS[name](**kw), slots=[range(len(variables))]
        )
        optimizer.build(variables)
        clone = optimizer.optimizers[0]
        if fused:
            optimizer.replace_update_steps(fused_update)
            assert isinstance(clone._backend_update_step, FusedUpdate)

        step = step_with_rest(optimizer, variables, gradient == "sparse")
        for batch, flags in enumerate(
            [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 0, 0)], 1
        ):
            held = [
                v
                for task, flag in enumerate(flags)
                for v in (*variables, *clone.variables)
                if flag and f"head_{task}" in v.path
            ]
            before = nets.values(held)
            step(tf.constant(batch), tf.constant(flags) > 0)
            assert held or not any(flags)
            nets.assert_same_bits(nets.values(held), before)
        runs.append(nets.values([*variables, *clone.variables]))
    for ours, keras_own in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-9, atol=1e-15)


def step_with_rest(optimizer, variables, is_sparse):
    @tf.function(autograph=False)
    def step(batch, flags):
        taken = gradients(1, 0, variables)
        taken = [g * tf.cast(batch, g.dtype) for g in taken]
        if is_sparse:
            taken[-1] = tf.IndexedSlices(taken[-1][1:2], [1], [3, 2])
        heads = zip(tf.unstack(flags), variables[2:], strict=True)
        resting = [(flag, [head]) for flag, head in heads]
        optimizer.apply_slot(0, taken, variables, resting=resting)
        optimizer.finish_batch()

    return step
