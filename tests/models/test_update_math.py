"""What a `train_step` computes, against loops in NumPy and stock Keras.

One shared tanh layer and a linear head per task, in float64, with gradients
written by hand. Hyperparameters are exact in float32, because Keras rounds
them to it on their way.
"""

import functools

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras import MultiTaskModel
from mtlkeras.strategies import (
    Alternating,
    Grouped,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)

TASKS = ("a", "b", "c")
RATE = 2.0**-6
FEATURES, UNITS, ROWS = 4, 5, 8


@pytest.fixture(autouse=True)
def _float64():
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def adam(**kw):
    kw = {"beta_1": 0.875, "beta_2": 0.9375, "epsilon": 2.0**-20, **kw}
    return keras.optimizers.Adam(RATE, **kw)


def make_model(tasks=TASKS, cls=MultiTaskModel, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    trunk = keras.layers.Dense(
        UNITS, "tanh", bias_initializer="random_normal", name="trunk"
    )(inputs)
    return cls(
        inputs,
        {
            task: keras.layers.Dense(1, name=f"head_{task}")(trunk)
            for task in tasks
        },
    )


def make_batches(count, tasks=TASKS, seed=0, missing=()):
    """`(x, y)`; targets of `(batch, task)` in `missing` are NaN."""
    rng = np.random.default_rng(seed)
    batches = []
    for batch in range(count):
        x = rng.normal(size=(ROWS, FEATURES))
        y = {task: rng.normal(size=(ROWS, 1)) for task in tasks}
        for task in tasks:
            if (batch, task) in missing:
                y[task][:] = np.nan
        batches.append((x, y))
    return batches


def train(
    strategy,
    optimizer,
    batches,
    tasks=TASKS,
    loss="mse",
    run_eagerly=True,
    weights=None,
):
    model = make_model(tasks)
    loss = loss if isinstance(loss, dict) else dict.fromkeys(tasks, loss)
    model.compile(
        optimizer, loss=loss, strategy=strategy, run_eagerly=run_eagerly
    )
    for i, (x, y) in enumerate(batches):
        model.train_on_batch(x, y, None if weights is None else weights[i])
    return model


def arrays(model):
    return {v.path: np.array(v.numpy()) for v in model.trainable_variables}


def assert_same(model, expected):
    expected = expected if isinstance(expected, dict) else arrays(expected)
    for path, value in arrays(model).items():
        np.testing.assert_array_equal(value, expected[path], path)


def assert_close(model, expected, rtol=1e-11):
    expected = expected if isinstance(expected, dict) else arrays(expected)
    for path, value in arrays(model).items():
        np.testing.assert_allclose(
            value, expected[path], rtol=rtol, atol=rtol, err_msg=path
        )


def distance(first, second):
    first = first if isinstance(first, dict) else arrays(first)
    second = second if isinstance(second, dict) else arrays(second)
    return max(np.abs(first[path] - second[path]).max() for path in first)


def is_shared(path):
    return path.startswith("trunk")


# -- the reference ------------------------------------------------------------


def gradient(params, task, x, y):
    """Of the mean squared error over the labelled rows, by hand."""
    labelled = ~np.isnan(y[:, 0])
    x, y = x[labelled], y[labelled]
    kernel = params[f"head_{task}/kernel"]
    h = np.tanh(x @ params["trunk/kernel"] + params["trunk/bias"])
    error = h @ kernel + params[f"head_{task}/bias"] - y
    d_out = 2 * error / len(x)
    d_pre = (d_out @ kernel.T) * (1 - h**2)
    return {
        "trunk/kernel": x.T @ d_pre,
        "trunk/bias": d_pre.sum(0),
        f"head_{task}/kernel": h.T @ d_out,
        f"head_{task}/bias": d_out.sum(0),
    }


def group_gradient(params, group, x, y):
    total = {}
    for task in group:
        for path, g in gradient(params, task, x, y[task]).items():
            total[path] = total.get(path, 0.0) + g
    return total


class AdamSlot:
    """Kingma and Ba's Adam with Keras's epsilon, and its own count."""

    def __init__(self, b1=0.875, b2=0.9375, epsilon=2.0**-20):
        self.b1, self.b2, self.epsilon = b1, b2, epsilon
        self.count, self.m, self.v = 0, {}, {}

    def step(self, params, gradients, rate=RATE):
        self.count += 1
        correction = np.sqrt(1 - self.b2**self.count)
        correction /= 1 - self.b1**self.count
        for path, g in gradients.items():
            m = self.m.get(path, 0.0)
            v = self.v.get(path, 0.0)
            self.m[path] = self.b1 * m + (1 - self.b1) * g
            self.v[path] = self.b2 * v + (1 - self.b2) * g**2
            params[path] = params[path] - rate * correction * self.m[path] / (
                np.sqrt(self.v[path]) + self.epsilon
            )


def has_label(y, task):
    return not np.isnan(y[task]).all()


def reference(batches, groups_of, tasks=TASKS, slot_of=None, rates=None):
    """The loop of the paper, in NumPy.

    Args:
        groups_of: Function from the batch number to the groups to visit.
        slot_of: Function from a group to the key of its slot. Defaults to a
            slot per group.
        rates: Dict from slot key to factor on the learning rate.
    """
    params = arrays(make_model(tasks))
    slots = {}
    for number, (x, y) in enumerate(batches):
        for group in groups_of(number):
            live = [task for task in group if has_label(y, task)]
            if not live:
                continue
            key = slot_of(group) if slot_of else tuple(group)
            slot = slots.setdefault(key, AdamSlot())
            taken = group_gradient(params, live, x, y)
            slot.step(params, taken, RATE * (rates or {}).get(key, 1.0))
    return params, slots


SINGLES = [("a",), ("b",), ("c",)]


def test_reference_gradients_are_those_of_the_model():
    """The instrument first: by hand, and by TensorFlow's tape."""
    model = make_model()
    ((x, y),) = make_batches(1)
    y["b"][:3] = np.nan
    for task in TASKS:
        rows = ~np.isnan(y[task][:, 0])
        with tf.GradientTape() as tape:
            prediction = model(x)[task]
            loss = tf.reduce_mean((prediction[rows] - y[task][rows]) ** 2)
        by_hand = gradient(arrays(model), task, x, y[task])
        taken = tape.gradient(
            loss, [v.value for v in model.trainable_variables]
        )
        for variable, g in zip(model.trainable_variables, taken, strict=True):
            if g is None:
                assert variable.path not in by_hand
            else:
                np.testing.assert_allclose(
                    g, by_hand[variable.path], rtol=1e-12, atol=1e-15
                )


# -- every strategy against the loop ------------------------------------------


def cycle(number):
    return [SINGLES[number % 3]]


def drawn(strategy, number):
    return [SINGLES[int(strategy.select_group(number))]]


def ordered(strategy, number):
    return [strategy.groups[int(k)] for k in strategy.order_groups(number)]


GROUPS = [("c", "a"), ("b",)]
WITH_LOOP = {
    "alternating": (Alternating(), lambda number: SINGLES, None),
    "alternating without task slots": (
        Alternating(task_slots=False),
        lambda number: SINGLES,
        lambda group: "all",
    ),
    "grouped": (Grouped(GROUPS), lambda number: GROUPS, None),
    "grouped without task slots": (
        Grouped(GROUPS, task_slots=False),
        lambda number: GROUPS,
        lambda group: "all",
    ),
    "round_robin": (RoundRobin(), cycle, None),
    "round_robin without task slots": (
        RoundRobin(task_slots=False),
        cycle,
        lambda group: "all",
    ),
    "sampled": (Sampled(seed=4), drawn, None),
    "shuffled": (Alternating(shuffle=True, seed=4), ordered, None),
    "shuffled groups": (
        Grouped(GROUPS, shuffle=True, seed=3),
        ordered,
        None,
    ),
    "random_groups": (
        RandomGroups(2, seed=3),
        lambda strategy, number: strategy.groups,
        None,
    ),
}


def bind(groups_of, strategy):
    if groups_of in (drawn, ordered) or "random" in type(strategy).__name__:
        return functools.partial(groups_of, strategy)
    if isinstance(strategy, RandomGroups):
        return functools.partial(groups_of, strategy)
    return groups_of


@pytest.mark.parametrize("case", WITH_LOOP)
def test_strategy_equals_numpy_loop(case):
    strategy, groups_of, slot_of = WITH_LOOP[case]
    strategy.bind(TASKS)
    batches = make_batches(7)
    model = train(
        strategy,
        adam(),
        batches,
        # The main ones in a graph, as `fit` runs them.
        run_eagerly=case not in ("alternating", "sampled", "shuffled"),
    )
    expected, slots = reference(
        batches, bind(groups_of, strategy), slot_of=slot_of
    )
    assert_close(model, expected)
    counts = sorted(int(c.iterations) for c in model.optimizer.optimizers)
    used = sorted(slot.count for slot in slots.values())
    assert counts == [0] * (len(counts) - len(used)) + used
    assert int(model.optimizer.iterations) == 7
    # The loop is no constant: its start is far away.
    assert distance(make_model(), expected) > RATE


def test_the_loops_differ():
    """The controls: no two of the loops above are the same."""
    batches = make_batches(7)
    results = {}
    for case, (strategy, groups_of, slot_of) in WITH_LOOP.items():
        strategy.bind(TASKS)
        if case == "random_groups" and set(
            map(frozenset, strategy.groups)
        ) == set(map(frozenset, GROUPS)):
            continue
        results[case] = reference(
            batches, bind(groups_of, strategy), slot_of=slot_of
        )[0]
    cases = list(results)
    for i, first in enumerate(cases):
        for second in cases[:i]:
            assert distance(results[first], results[second]) > 1e-4, (
                first,
                second,
            )


def test_task_learning_rates_against_the_loop():
    batches = make_batches(4)
    rates = {"a": 0.25, "c": 4.0}
    model = train(Alternating(task_learning_rates=rates), adam(), batches)
    expected, _ = reference(
        batches,
        lambda number: SINGLES,
        rates={(task,): rate for task, rate in rates.items()},
    )
    assert_close(model, expected)


@pytest.mark.parametrize("resample", ["step", "epoch"])
def test_resampled_groups_equal_the_loop(resample):
    """Shared weights by position, each head by its own slots."""
    missing = {(1, "a"), (2, "b"), (3, "a"), (3, "b"), (3, "c"), (4, "c")}
    batches = make_batches(6, missing=missing)
    strategy = RandomGroups(2, resample=resample, seed=9)
    strategy.bind(TASKS)
    model = train(strategy, adam(), batches)
    params = arrays(make_model())
    positions = [AdamSlot(), AdamSlot()]
    heads = {task: AdamSlot() for task in TASKS}
    partitions = set()
    for number, (x, y) in enumerate(batches):
        draw = number if resample == "step" else 0
        assigned = np.array(strategy.assign_groups(draw))
        partitions.add(tuple(assigned))
        own = {}
        for k in range(2):
            live = [
                task
                for task, group in zip(TASKS, assigned, strict=True)
                if group == k and has_label(y, task)
            ]
            if not live:
                continue
            taken = group_gradient(params, live, x, y)
            shared = {p: g for p, g in taken.items() if is_shared(p)}
            own.update({p: g for p, g in taken.items() if not is_shared(p)})
            positions[k].step(params, shared)
        for task in TASKS:
            mine = {
                p: g for p, g in own.items() if p.startswith(f"head_{task}")
            }
            if mine:
                heads[task].step(params, mine)
    assert_close(model, params)
    counts = [int(c.iterations) for c in model.optimizer.optimizers]
    assert counts == [
        *(slot.count for slot in positions),
        *(heads[task].count for task in TASKS),
    ]
    assert len(partitions) == 1 if resample == "epoch" else len(partitions) > 1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_multi_adaptive_equals_the_loop(reduction):
    """Directions of the shared weights add up; heads have ordinary Adam."""
    batches = make_batches(5, missing={(2, "b")})
    model = train(MultiAdaptive(reduction), adam(), batches)
    params = arrays(make_model())
    slots = {task: AdamSlot() for task in TASKS}
    for x, y in batches:
        at = dict(params)
        for task in TASKS:
            if not has_label(y, task):
                continue
            taken = gradient(at, task, x, y[task])
            moved = dict(at)
            slots[task].step(moved, taken)
            for path in taken:
                factor = 1.0
                if reduction == "mean" and is_shared(path):
                    factor = 1 / len(TASKS)
                params[path] = params[path] + factor * (moved[path] - at[path])
    assert_close(model, params)


# -- unlabelled tasks rest ----------------------------------------------------

MISSING = {
    (0, "b"),
    (1, "a"),
    (2, "a"),
    (2, "b"),
    (2, "c"),
    (3, "c"),
    (5, "b"),
}


@pytest.mark.parametrize("how", ["nan", "zero weights"])
@pytest.mark.parametrize(
    "case",
    [
        "alternating",
        "alternating without task slots",
        "round_robin",
        "shuffled",
    ],
)
def test_unlabelled_tasks_rest(case, how):
    """No update, no decay of moments, no count."""
    strategy, groups_of, slot_of = WITH_LOOP[case]
    strategy.bind(TASKS)
    batches = make_batches(7, missing=MISSING)
    expected, slots = reference(
        batches, bind(groups_of, strategy), slot_of=slot_of
    )
    weights = None
    if how == "zero weights":
        full = make_batches(7)
        weights = [
            {
                task: np.full(ROWS, float((number, task) not in MISSING))
                for task in TASKS
            }
            for number in range(7)
        ]
        batches, with_nan = full, batches
        assert_same_where_labelled(batches, with_nan)
    model = train(strategy, adam(), batches, weights=weights)
    assert_close(model, expected)
    for clone, key in zip(
        model.optimizer.optimizers,
        SINGLES if slot_of is None else ["all"],
        strict=True,
    ):
        assert int(clone.iterations) == slots[key].count
    assert int(model.optimizer.iterations) == 7


def assert_same_where_labelled(full, with_nan):
    for (x, y), (x_nan, y_nan) in zip(full, with_nan, strict=True):
        np.testing.assert_array_equal(x, x_nan)
        for task in TASKS:
            if has_label(y_nan, task):
                np.testing.assert_array_equal(y[task], y_nan[task])


@pytest.mark.parametrize("shuffle", [False, True])
def test_unlabelled_heads_rest_in_a_labelled_group(shuffle):
    """The group's clone steps; the unlabelled head and its moments do not."""
    batches = make_batches(7, missing=MISSING)
    strategy = Grouped(GROUPS, shuffle=shuffle, seed=0)
    strategy.bind(TASKS)
    model = train(strategy, adam(), batches)
    groups_of = (
        functools.partial(ordered, strategy)
        if shuffle
        else (lambda number: GROUPS)
    )
    expected, slots = reference(batches, groups_of)
    assert_close(model, expected)
    # A zero gradient in place of a rest would have moved the head by momentum.
    assert [int(c.iterations) for c in model.optimizer.optimizers] == [
        slots[group].count for group in GROUPS
    ]


def test_partly_labelled_batches_equal_the_loop():
    """The mean over the labelled rows, for every strategy of sub-steps."""
    batches = make_batches(4)
    for number, (_, y) in enumerate(batches):
        y["a"][: 2 + number] = np.nan
        y["c"][number] = np.nan
    for case in ("alternating", "grouped"):
        strategy, groups_of, slot_of = WITH_LOOP[case]
        expected, _ = reference(batches, groups_of, slot_of=slot_of)
        assert_close(train(strategy, adam(), batches), expected)


def test_batches_without_any_label_change_nothing():
    batches = make_batches(2)
    empty = make_batches(1, missing={(0, task) for task in TASKS})
    for strategy in (
        "alternating",
        "round_robin",
        "multi_adaptive",
        Alternating(shuffle=True, seed=0),
    ):
        model = train(strategy, adam(), batches)
        before = arrays(model)
        slots = [nets.values(c.variables) for c in model.optimizer.optimizers]
        model.train_on_batch(*empty[0])
        assert_same(model, before)
        for clone, saved in zip(model.optimizer.optimizers, slots, strict=True):
            nets.assert_same_bits(nets.values(clone.variables), saved)
        assert int(model.optimizer.iterations) == 3


# -- claim 7: heads -----------------------------------------------------------


def slots_of_head(model, task):
    return nets.values(
        v
        for clone in model.optimizer.optimizers
        for v in clone.variables
        if f"head_{task}" in v.path
    )


@pytest.mark.parametrize(
    "strategy",
    [
        RoundRobin(),
        RoundRobin(task_slots=False),
        Sampled(seed=0),
        Sampled(seed=0, task_slots=False),
        Alternating(),
        Alternating(task_slots=False),
        Alternating(shuffle=True, seed=0),
        MultiAdaptive(),
    ],
    ids=repr,
)
def test_an_update_leaves_other_heads_and_their_slots(strategy):
    """Bit for bit; strategies of all tasks see a batch of one task's labels."""
    strategy.bind(TASKS)
    warm_up = make_batches(3)
    model = train(strategy, adam(), warm_up)
    for number in range(3, 9):
        if hasattr(strategy, "one_group_per_step") and (
            strategy.one_group_per_step
        ):
            (x, y), task = (
                make_batches(1, seed=number)[0],
                TASKS[int(strategy.select_group(number))],
            )
        else:
            task = TASKS[number % 3]
            others = {(0, name) for name in TASKS if name != task}
            x, y = make_batches(1, seed=number, missing=others)[0]
        before = arrays(model)
        slots = {name: slots_of_head(model, name) for name in TASKS}
        # Kernel and bias, two moments each.
        assert len(slots[task]) == 4
        model.train_on_batch(x, y)
        after = arrays(model)
        for path in before:
            moves = is_shared(path) or path.startswith(f"head_{task}")
            assert (before[path] != after[path]).all() == moves, path
        for name in TASKS:
            same = [
                np.array_equal(a, b)
                for a, b in zip(
                    slots[name], slots_of_head(model, name), strict=True
                )
            ]
            assert same == [name != task] * 4


# -- an output without a loss is not a task ------------------------------------


# As stock Keras says under `joint`, where every variable is the optimizer's.
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize(
    "strategy",
    [
        "joint",
        "alternating",
        Grouped([["a", "b"]]),
        "round_robin",
        Alternating(shuffle=True, seed=0),
        RandomGroups(2, resample="step", seed=0),
        "multi_adaptive",
    ],
    ids=repr,
)
def test_an_output_without_a_loss_is_left_alone(strategy):
    """As if the output were not there."""
    batches = make_batches(3)
    two = {"a": "mse", "b": "mse"}
    with_output = train(strategy, adam(), batches, loss=two)
    assert with_output.task_names == ("a", "b")
    expected = arrays(make_model())
    without = train(
        strategy,
        adam(),
        [(x, {t: y[t] for t in two}) for x, y in batches],
        tasks=tuple(two),
    )
    expected.update(arrays(without))
    assert_same(with_output, expected)


# -- claim 1: one task --------------------------------------------------------


def one_task(cls, optimizer, **compile_arguments):
    model = make_model(("a",), cls)
    model.compile(optimizer, loss={"a": "mse"}, **compile_arguments)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, FEATURES)), {"a": rng.normal(size=(400, 1))}
    # 100 steps, and what `fit` does at the end of training.
    history = model.fit(x, y, batch_size=ROWS, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 100
    return model, history.history


ONE_TASK = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.05),
    "average": lambda: keras.optimizers.AdamW(
        0.01,
        weight_decay=0.05,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=7,
    ),
}


@functools.cache
def stock(name):
    model, history = one_task(keras.Model, ONE_TASK[name]())
    return arrays(model), history


def other_strategies():
    return [
        MultiAdaptive(),
        MultiAdaptive("mean"),
        Alternating(task_slots=False),
        Alternating(shuffle=True, seed=0),
        Grouped([["a"]]),
        Grouped([["a"]], task_slots=False),
        RandomGroups(1, seed=0),
        RandomGroups(1, resample="epoch", seed=0),
        RandomGroups(1, resample="step", seed=0),
        RoundRobin(),
        RoundRobin(task_slots=False),
        Sampled(seed=0),
        Sampled(task_slots=False, seed=0),
    ]


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        (name, strategy)
        for name in ONE_TASK
        for strategy in ("joint", "alternating")
    ]
    + [("average", strategy) for strategy in other_strategies()],
    ids=repr,
)
def test_one_task_is_stock_keras(name, strategy):
    """Bit for bit after 100 steps, with the same history."""
    expected, history = stock(name)
    model, ours = one_task(MultiTaskModel, ONE_TASK[name](), strategy=strategy)
    assert_same(model, expected)
    assert ours.keys() == history.keys()
    for key in history:
        np.testing.assert_allclose(ours[key], history[key], rtol=1e-12)
    # The control: the optimizers lead to different places.
    others = [stock(other)[0] for other in ONE_TASK if other != name]
    assert all(distance(expected, other) > 1e-6 for other in others)


# -- oracle (a) and claim 6: groups -------------------------------------------


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_one_group_is_joint(run_eagerly):
    """The same bits in every weight and every slot."""
    batches = make_batches(5)
    joint = train("joint", adam(), batches, run_eagerly=run_eagerly)
    for strategy in (
        Grouped([list(TASKS)]),
        Grouped([list(TASKS)], task_slots=False),
        RandomGroups(1, seed=0),
    ):
        model = train(strategy, adam(), batches, run_eagerly=run_eagerly)
        assert_same(model, joint)
        (clone,) = model.optimizer.optimizers
        nets.assert_same_bits(
            nets.values(clone.variables), nets.values(joint.optimizer.variables)
        )
    alternating = train("alternating", adam(), batches, run_eagerly=True)
    assert distance(alternating, joint) > 1e-3


def test_groups_of_one_are_alternating():
    batches = make_batches(5)
    alternating = train("alternating", adam(), batches)
    assert_same(train(Grouped(SINGLES), adam(), batches), alternating)
    strategy = RandomGroups(3, seed=5)
    strategy.bind(TASKS)
    # Random groups of one are the same in another order.
    same_order = Grouped(strategy.groups)
    assert_same(
        train(strategy, adam(), batches), train(same_order, adam(), batches)
    )
    assert strategy.groups != tuple(SINGLES)
    assert distance(train(strategy, adam(), batches), alternating) > 1e-4


def test_random_groups_train_reproducibly():
    batches = make_batches(4)
    for resample in ("never", "step"):
        runs = [
            arrays(train(RandomGroups(2, resample, seed=seed), adam(), batches))
            for seed in (1, 1, 2)
        ]
        assert distance(runs[0], runs[1]) == 0.0
        assert distance(runs[0], runs[2]) > 1e-4


# -- oracle (b): plain SGD has no slots ---------------------------------------


@pytest.mark.parametrize("rate", [0.1, 2.0**-3])
def test_sgd_is_the_same_with_and_without_task_slots(rate):
    batches = make_batches(5)
    for make in (
        lambda **kw: Alternating(**kw),
        lambda **kw: Grouped(GROUPS, **kw),
        lambda **kw: RoundRobin(**kw),
    ):
        runs = [
            train(make(task_slots=slots), keras.optimizers.SGD(rate), batches)
            for slots in (True, False)
        ]
        assert_same(*runs)
    with_momentum = [
        train(
            Alternating(task_slots=slots),
            keras.optimizers.SGD(rate, momentum=0.9),
            batches,
        )
        for slots in (True, False)
    ]
    assert distance(*with_momentum) > 1e-3


# -- oracle (c): the first batch of Adam --------------------------------------


@pytest.mark.parametrize("name", ["alternating", "multi_adaptive"])
def test_first_adam_batch_moves_by_signs(name):
    ((x, y),) = batches = make_batches(1)
    model = train(name, adam(epsilon=2.0**-60), batches)
    start = arrays(make_model())
    params = dict(start)
    for task in TASKS:
        at = params if name == "alternating" else start
        taken = gradient(at, task, x, y[task])
        for path, g in taken.items():
            params[path] = params[path] - RATE * np.sign(g)
    assert_close(model, params)
    # Three tasks: a shared weight moved by 1 or 3 rates, a head's by one.
    for path, value in arrays(model).items():
        steps = np.abs(value - start[path]) / RATE
        allowed = (1.0, 3.0) if is_shared(path) else (1.0,)
        nearest = np.min([np.abs(steps - n) for n in allowed], axis=0)
        assert nearest.max() < 1e-9
        if is_shared(path) and value.ndim > 1:
            assert {1, 3} == set(np.rint(steps).astype(int).ravel())


# -- oracle (d) and claim 2: loss scale ---------------------------------------


def scaled_losses(factor):
    def scaled(y_true, y_pred):
        return factor * keras.losses.mean_squared_error(y_true, y_pred)

    return {"a": "mse", "b": scaled, "c": "mse"}


@pytest.mark.parametrize("name", ["alternating", "multi_adaptive"])
def test_the_scale_of_a_loss_cancels(name):
    batches = make_batches(10)
    for epsilon, factor, allowed in [
        (0.0, 1024.0, 0.0),  # a power of two rounds nothing
        (0.0, 1000.0, 1e-12),
        (2.0**-34, 1000.0, 1e-6),
    ]:
        runs = [
            train(name, adam(epsilon=epsilon), batches, loss=scaled_losses(s))
            for s in (1.0, factor)
        ]
        assert distance(*runs) <= allowed
    assert distance(*runs) > 0.0  # epsilon is felt, a little


@pytest.mark.parametrize("strategy", ["joint", Alternating(task_slots=False)])
def test_the_scale_of_a_loss_counts_without_task_slots(strategy):
    """The negative control of the one above."""
    batches = make_batches(10)
    runs = [
        train(strategy, adam(), batches, loss=scaled_losses(factor))
        for factor in (1.0, 1000.0)
    ]
    assert distance(*runs) > 2 * RATE


# -- oracles (e), (f) and 3.4: losses that are linear in the weights -----------


def linear_model(strategy, optimizer, factors, width=1, run_eagerly=False):
    """Weights `w [width]`; task k's loss is `factors[k] * mean(y_k * w)`."""
    inputs = keras.Input((1,))
    trunk = keras.layers.Dense(
        width, use_bias=False, kernel_initializer="zeros", name="trunk"
    )(inputs)
    tasks = TASKS[: len(factors)]

    def loss_of(factor):
        def linear(y_true, y_pred):
            return factor * keras.ops.mean(y_true * y_pred, axis=-1)

        return linear

    model = MultiTaskModel(
        inputs,
        {
            task: keras.layers.Activation("linear", name=f"head_{task}")(trunk)
            for task in tasks
        },
    )
    model.compile(
        optimizer,
        loss={
            t: loss_of(factor) for t, factor in zip(tasks, factors, strict=True)
        },
        strategy=strategy,
        run_eagerly=run_eagerly,
    )
    return model


def directions(strategy, batches=300, watched=4):
    """Moves of the weight per batch in units of the rate, in the end."""
    model = linear_model(
        strategy,
        keras.optimizers.Adam(RATE, 0.9, 0.999, 2.0**-30),
        (1.0, -100.0),
    )
    ones = np.ones((batches, 1))
    model.fit(
        ones, {"a": ones, "b": ones}, batch_size=1, verbose=0, shuffle=False
    )
    (weight,) = model.trainable_variables
    moves = []
    for _ in range(watched):
        before = weight.numpy().item()
        model.train_on_batch(ones[:1], {"a": ones[:1], "b": ones[:1]})
        moves.append((weight.numpy().item() - before) / RATE)
    return moves


def steady_state(own, other, b1=0.9, b2=0.999):
    """Direction of a shared Adam in a sub-step, in closed form."""
    m = (own + b1 * other) / (1 + b1)
    v = (own**2 + b2 * other**2) / (1 + b2)
    return m / np.sqrt(v)


def test_constant_gradients_of_1_and_minus_100():
    """A shared state turns the small task around; an own one does not."""
    first, second = steady_state(1, -100), steady_state(-100, 1)
    np.testing.assert_allclose([first, second], [-0.66, -0.74], atol=5e-3)
    # One task per batch shows the sub-steps one by one.
    shared = directions(RoundRobin(task_slots=False), 600)
    np.testing.assert_allclose(shared, [-first, -second] * 2, atol=5e-3)
    own = directions(RoundRobin())
    np.testing.assert_allclose(own, [-1, 1] * 2, atol=1e-5)
    # And with both in each batch their sum.
    shared = directions(Alternating(task_slots=False), 300)
    np.testing.assert_allclose(shared, [-first - second] * 4, atol=1e-2)
    own = directions(Alternating())
    np.testing.assert_allclose(own, [0] * 4, atol=1e-5)
    # MAO nets 0, too; joint Adam follows the large task at full step.
    np.testing.assert_allclose(directions("multi_adaptive"), [0] * 4, atol=1e-5)
    np.testing.assert_allclose(directions("joint"), [1] * 4, atol=1e-4)


def test_linear_losses_alternating_is_multi_adaptive():
    rng = np.random.default_rng(3)
    runs = {}
    for name in ("alternating", "multi_adaptive", "joint", "half"):
        rng = np.random.default_rng(3)
        model = linear_model(
            MultiAdaptive("mean") if name == "half" else name,
            adam(),
            (1.0, -30.0),
            width=6,
            run_eagerly=True,
        )
        for _ in range(20):
            y = {t: rng.normal(size=(4, 6)) for t in ("a", "b")}
            model.train_on_batch(np.ones((4, 1)), y)
        runs[name] = arrays(model)
    assert distance(runs["alternating"], runs["multi_adaptive"]) < 1e-14
    assert distance(runs["joint"], runs["multi_adaptive"]) > RATE
    # All weights are shared here, so the mean of two is half the sum.
    doubled = {path: 2 * value for path, value in runs["half"].items()}
    assert distance(doubled, runs["multi_adaptive"]) < 1e-14


def test_curved_losses_alternating_is_not_multi_adaptive():
    batches = make_batches(5)
    first = train("alternating", adam(), batches)
    second = train("multi_adaptive", adam(), batches)
    assert 1e-4 < distance(first, second)


# -- claims 4 and 5: order in small steps -------------------------------------


def after_one_batch(strategy, rate):
    batches = make_batches(1)
    return arrays(train(strategy, keras.optimizers.SGD(rate), batches))


def difference(first, second):
    return np.concatenate(
        [(first[path] - second[path]).ravel() for path in sorted(first)]
    )


def test_gap_to_joint_is_of_second_order():
    gaps = []
    for rate in (2.0**-7, 2.0**-8, 2.0**-9):
        joint = after_one_batch("joint", rate)
        simultaneous = after_one_batch("multi_adaptive", rate)
        assert distance(joint, simultaneous) < 1e-15  # SGD: the same sum
        alternating = after_one_batch("alternating", rate)
        gaps.append(np.linalg.norm(difference(alternating, joint)))
    ratios = np.array(gaps[:-1]) / np.array(gaps[1:])
    np.testing.assert_allclose(ratios, 4, atol=0.05)
    # sum_{i<k} H_k g_i is the constant in front.
    np.testing.assert_allclose(
        gaps[-1] * 4.0**9,
        np.linalg.norm(
            sum(
                curvature_times_gradient(k, i)
                for k in range(3)
                for i in range(k)
            )
        ),
        rtol=0.02,
    )


def curvature_times_gradient(k, i):
    """`H_k g_i` at the start: central difference of gradients by hand."""
    ((x, y),) = make_batches(1)
    start = arrays(make_model())
    zero = {path: np.zeros_like(value) for path, value in start.items()}
    g = {**zero, **gradient(start, TASKS[i], x, y[TASKS[i]])}
    step = 1e-5
    ends = []
    for sign in (1, -1):
        at = {path: start[path] + sign * step * g[path] for path in start}
        ends.append({**zero, **gradient(at, TASKS[k], x, y[TASKS[k]])})
    return difference(*ends) / (2 * step)


def test_order_of_two_tasks_is_of_second_order():
    """`eta^2 (H_2 g_1 - H_1 g_2)`, and what is left falls with `eta^3`."""
    formula = curvature_times_gradient(1, 0) - curvature_times_gradient(0, 1)
    left = []
    ((x, y),) = make_batches(1)
    # Task c rests, so that the reference above serves here, too.
    y["c"][:] = np.nan
    for rate in (2.0**-6, 2.0**-7, 2.0**-8):
        orders = [
            arrays(train(Grouped(groups), keras.optimizers.SGD(rate), [(x, y)]))
            for groups in ([["a"], ["b"], ["c"]], [["b"], ["a"], ["c"]])
        ]
        change = difference(*orders) / rate**2
        np.testing.assert_allclose(
            change, formula, atol=20 * rate * np.abs(formula).max()
        )
        left.append(np.linalg.norm(change - formula))
    ratios = np.array(left[:-1]) / np.array(left[1:])
    np.testing.assert_allclose(ratios, 2, atol=0.1)


def quadratic_orders(targets):
    """Change of order for two quadratics with diagonal Hessians."""
    results = []
    for groups in ([["a"], ["b"]], [["b"], ["a"]]):
        inputs = keras.Input((3,))
        weights = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="ones", name="trunk"
        )(inputs)
        scale = {"a": [[1.0], [2.0], [3.0]], "b": [[3.0], [1.0], [0.5]]}
        model = MultiTaskModel(
            inputs,
            {
                task: keras.layers.Activation("linear", name=task)(weights)
                for task in scale
            },
        )

        def squares(y_true, y_pred):
            # The first column scales the row's weight, the second is its aim.
            return (y_true[:, :1] * (y_pred - y_true[:, 1:])) ** 2

        model.compile(
            keras.optimizers.SGD(2.0**-4),
            loss={"a": squares, "b": squares},
            strategy=Grouped(groups),
            run_eagerly=True,
        )
        y = {
            task: np.concatenate(
                [np.array(scale[task]), np.full((3, 1), targets[task])], 1
            )
            for task in scale
        }
        for _ in range(3):
            model.train_on_batch(np.eye(3), y)
        results.append(arrays(model))
    return distance(*results)


def test_order_of_commuting_quadratics_with_a_common_minimum():
    assert quadratic_orders({"a": 0.5, "b": 0.5}) < 1e-12
    # Commuting alone is not enough.
    assert quadratic_orders({"a": 0.5, "b": -0.5}) > 1e-3


# -- weight decay, whatever else goes on --------------------------------------


def with_decay(decay):
    return keras.optimizers.AdamW(
        RATE,
        weight_decay=decay,
        beta_1=0.875,
        beta_2=0.9375,
        epsilon=2.0**-20,
    )


@pytest.mark.parametrize("case", ["alternating", "grouped", "shuffled"])
def test_weight_decay_once_per_batch_of_every_updated_variable(case):
    strategy, groups_of, _ = WITH_LOOP[case]
    strategy.bind(TASKS)
    batches = make_batches(5, missing=MISSING)
    decay = 2.0**-3
    model = train(strategy, with_decay(decay), batches)
    params = arrays(make_model())
    slots = {}
    for number, (x, y) in enumerate(batches):
        decayed = set()
        for group in bind(groups_of, strategy)(number):
            live = [task for task in group if has_label(y, task)]
            if not live:
                continue
            taken = group_gradient(params, live, x, y)
            for path in taken:
                if path not in decayed:
                    params[path] = params[path] * (1 - decay * RATE)
                    decayed.add(path)
            slots.setdefault(group, AdamSlot()).step(params, taken)
    assert_close(model, params)


def test_weight_decay_when_the_first_update_overflows():
    """A clone that skips for its loss scale has not decayed for the others."""
    decay, batches = 2.0**-3, make_batches(3)

    def huge(y_true, y_pred):
        return 1e300 * keras.losses.mean_squared_error(y_true, y_pred)

    model = train(
        "alternating",
        keras.optimizers.LossScaleOptimizer(
            with_decay(decay), initial_scale=2.0**60
        ),
        batches,
        loss={"a": huge, "b": "mse", "c": "mse"},
    )
    scales = [float(c.dynamic_scale) for c in model.optimizer.optimizers]
    assert scales == [2.0**57, 2.0**60, 2.0**60]
    params, slots = arrays(make_model()), {}
    for x, y in batches:
        decayed = set()
        for task in ("b", "c"):
            taken = gradient(params, task, x, y[task])
            for path in set(taken) - decayed:
                params[path] = params[path] * (1 - decay * RATE)
                decayed.add(path)
            slots.setdefault(task, AdamSlot()).step(params, taken)
    assert_close(model, params)


def test_weight_decay_with_gradient_accumulation_out_of_phase():
    """Task b updates in batches in which task a only accumulates."""
    decay = 2.0**-3
    never = {(number, "c") for number in range(4)}
    batches = make_batches(4, missing={(0, "a"), *never})
    optimizer = keras.optimizers.SGD(
        RATE, weight_decay=decay, gradient_accumulation_steps=2
    )
    model = train("alternating", optimizer, batches)
    params = arrays(make_model())
    held = {}
    for x, y in batches:
        decayed = set()
        for task in ("a", "b"):
            if not has_label(y, task):
                continue
            taken = gradient(params, task, x, y[task])
            if task not in held:
                held[task] = taken
                continue
            earlier = held.pop(task)
            for path in taken:
                if path not in decayed:
                    params[path] = params[path] * (1 - decay * RATE)
                    decayed.add(path)
                mean = (taken[path] + earlier[path]) / 2
                params[path] = params[path] - RATE * mean
    assert_close(model, params)


def test_gradient_accumulation_of_shared_slots_is_refused():
    """One state would reset the accumulated gradients of resting heads."""
    with pytest.raises(ValueError, match="needs slots per task"):
        train(
            Alternating(task_slots=False),
            keras.optimizers.SGD(RATE, gradient_accumulation_steps=3),
            make_batches(1),
        )
