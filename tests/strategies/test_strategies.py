"""Strategies alone, without a model: groups, draws, configs, refusals."""

import collections
import itertools
import math
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras import strategies
from mtlkeras.strategies import (
    AffinityGroups,
    Alternating,
    Grouped,
    Joint,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)

TASKS = ("a", "b", "c", "d", "e")

IDS = {
    "affinity_groups": AffinityGroups,
    "alternating": Alternating,
    "grouped": Grouped,
    "joint": Joint,
    "multi_adaptive": MultiAdaptive,
    "random_groups": RandomGroups,
    "round_robin": RoundRobin,
    "sampled": Sampled,
}

EXAMPLES = [
    AffinityGroups(seed=4),
    AffinityGroups(0.1, 5, 20, "median", task_slots=False, seed=4),
    Joint(),
    Alternating(),
    Alternating(task_slots=False),
    Alternating(shuffle=True, seed=3, task_learning_rates={"a": 0.5}),
    Grouped([["a", "c"], ["e", "b", "d"]]),
    Grouped([list(TASKS)], task_slots=False),
    Grouped(
        [["e"], ["a", "b", "c", "d"]],
        shuffle=True,
        seed=1,
        task_learning_rates={"e": 2.0},
    ),
    RandomGroups(3, seed=5),
    RandomGroups(2, resample="epoch", seed=0, task_slots=False),
    RandomGroups(4, resample="step", seed=8),
    RoundRobin(),
    RoundRobin(task_slots=False),
    RoundRobin(task_learning_rates={"b": 3.0}),
    Sampled(seed=2),
    Sampled(
        {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.0},
        seed=2,
        task_slots=False,
    ),
    MultiAdaptive(),
    MultiAdaptive("mean", task_learning_rates={"a": 0.1}),
]


def bound(strategy, tasks=TASKS):
    strategy.bind(tasks)
    return strategy


def many(function, count):
    """`function(0), function(1), ...` computed in one graph."""

    @tf.function
    def run():
        return tf.map_fn(function, tf.range(count, dtype=tf.int64))

    return run().numpy()


# -- the registry -------------------------------------------------------------


def test_ids():
    assert strategies.ids() == sorted(strategies.ids())
    assert set(IDS) <= set(strategies.ids())
    for identifier in strategies.ids():
        if identifier in IDS:
            assert hasattr(strategies, IDS[identifier].__name__)


@pytest.mark.parametrize("identifier", sorted(set(IDS) - {"grouped"}))
def test_get_by_id(identifier):
    strategy = strategies.get(identifier)
    assert type(strategy) is IDS[identifier]
    assert strategy is not strategies.get(identifier)


def test_get_passes_objects_on():
    strategy = Alternating()
    assert strategies.get(strategy) is strategy
    assert strategies.get(None) == Joint()


@pytest.mark.parametrize("strategy", EXAMPLES, ids=repr)
def test_config_round_trip(strategy):
    serialized = keras.saving.serialize_keras_object(strategy)
    for again in (
        keras.saving.deserialize_keras_object(serialized),
        strategies.get(serialized),
        type(strategy).from_config(strategy.get_config()),
    ):
        assert type(again) is type(strategy)
        assert again == strategy
        assert hash(again) == hash(strategy)
        assert again.get_config() == strategy.get_config()
        assert bound(again).groups == bound(strategy).groups


def test_equality_is_of_type_and_config():
    for first, second in itertools.combinations(EXAMPLES, 2):
        assert first != second
    assert Alternating() != "alternating"
    assert RoundRobin() != Alternating()
    assert Sampled(seed=1) == Sampled(seed=1)
    assert Sampled(seed=1) != Sampled(seed=2)


def test_unknown_id_lists_and_suggests():
    with pytest.raises(ValueError, match="alternating") as error:
        strategies.get("alternatng")
    message = str(error.value)
    assert "Did you mean 'alternating'?" in message
    for identifier in IDS:
        assert identifier in message
    with pytest.raises(ValueError, match="qqq") as error:
        strategies.get("qqq")
    assert "Did you mean" not in str(error.value)


def test_get_refuses_other_kinds():
    with pytest.raises(ValueError, match="Received: strategy=3"):
        strategies.get(3)
    serialized = keras.saving.serialize_keras_object(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="strategy"):
        strategies.get(serialized)
    with pytest.raises(ValueError, match="Grouped"):
        strategies.get("grouped")


def test_get_refuses_distribution_strategies():
    with pytest.raises(ValueError, match="scope"):
        strategies.get(tf.distribute.get_strategy())
    with pytest.raises(ValueError, match=r"tf\.distribute"):
        strategies.get(tf.distribute.OneDeviceStrategy("/cpu:0"))


# -- groups -------------------------------------------------------------------


@pytest.mark.parametrize("strategy", EXAMPLES, ids=repr)
def test_groups_hold_every_task_once(strategy):
    groups = bound(strategy).groups
    assert isinstance(groups, tuple)
    assert all(isinstance(group, tuple) for group in groups)
    assert sorted(itertools.chain(*groups)) == sorted(TASKS)


def test_fixed_groups():
    singles = tuple((name,) for name in TASKS)
    for strategy in (Alternating(), RoundRobin(), Sampled(), MultiAdaptive()):
        assert bound(strategy).groups == singles
    assert bound(Joint()).groups == (TASKS,)
    grouped = bound(Grouped([("d", "b"), ["a"], ["e", "c"]]))
    assert grouped.groups == (("d", "b"), ("a",), ("e", "c"))


def test_groups_before_binding():
    with pytest.raises(ValueError, match="in force"):
        _ = Alternating().groups


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 8, 40])
def test_random_groups_are_balanced(num_tasks):
    tasks = tuple(f"t{i}" for i in range(num_tasks))
    for num_groups in {1, 2, 3, num_tasks} & set(range(1, num_tasks + 1)):
        for seed in range(3):
            strategy = bound(RandomGroups(num_groups, seed=seed), tasks)
            sizes = [len(group) for group in strategy.groups]
            assert len(sizes) == num_groups
            assert sum(sizes) == num_tasks
            assert max(sizes) - min(sizes) <= 1
            members = sorted(itertools.chain(*strategy.groups))
            assert members == sorted(tasks)


def test_random_groups_are_a_function_of_the_seed():
    tasks = tuple(f"t{i}" for i in range(12))
    partitions = [
        bound(RandomGroups(4, seed=seed), tasks).groups for seed in range(20)
    ]
    again = [
        bound(RandomGroups(4, seed=seed), tasks).groups for seed in range(20)
    ]
    assert partitions == again
    assert len(set(partitions)) == 20


def test_seeds_from_the_global_seed_or_drawn():
    for kind in (
        lambda: RandomGroups(2),
        lambda: Sampled(),
        lambda: Alternating(shuffle=True),
        lambda: AffinityGroups(),
    ):
        keras.utils.set_random_seed(7)
        first = kind()
        assert isinstance(first.seed, int)
        assert kind() != first
        keras.utils.set_random_seed(7)
        assert kind() == first


@pytest.mark.parametrize("resample", ["epoch", "step"])
def test_resampled_groups_are_balanced_and_change(resample):
    strategy = bound(RandomGroups(2, resample=resample, seed=0))
    assigned = many(strategy.assign_groups, 200)
    assert assigned.shape == (200, len(TASKS))
    sizes = np.stack([np.sum(assigned == k, 1) for k in range(2)])
    np.testing.assert_array_equal(sizes.sum(0), len(TASKS))
    np.testing.assert_array_equal(np.abs(sizes[0] - sizes[1]), 1)
    assert len({tuple(row) for row in assigned}) > 5
    for draw in (0, 3):
        # As an optimizer has them in the draw's epoch, or after its batch.
        strategy.remember_draw(
            types.SimpleNamespace(draw=draw, iterations=draw + 1)
        )
        expected = tuple(
            tuple(
                n for n, k in zip(TASKS, assigned[draw], strict=True) if k == g
            )
            for g in range(2)
        )
        assert strategy.groups == expected


def test_partitions_are_uniform():
    """Four tasks in two groups of two: three partitions, equally often."""
    strategy = bound(RandomGroups(2, resample="step", seed=4), tuple("abcd"))
    draws = 3000
    assigned = many(strategy.assign_groups, draws)
    with_first = (assigned[:, 1:] == assigned[:, :1]).sum(0)
    assert with_first.sum() == draws
    chi_square = np.sum((with_first - draws / 3) ** 2) / (draws / 3)
    assert chi_square < 2 + 4 * math.sqrt(4)
    # Each position gets each task equally often, too.
    share = assigned.mean(0)
    assert np.all(np.abs(share - 0.5) < 4 * 0.5 / math.sqrt(draws))


def test_partitions_are_uniform_over_seeds():
    """The partition that is drawn once, over users' seeds."""
    count = 150
    found = collections.Counter(
        frozenset(bound(RandomGroups(2, seed=seed), tuple("abcd")).groups[0])
        for seed in range(count)
    )
    assert len(found) == 6
    chi_square = sum((n - count / 6) ** 2 for n in found.values()) / (count / 6)
    assert chi_square < 5 + 4 * math.sqrt(10)


# -- draws --------------------------------------------------------------------


def test_round_robin_cycles():
    chosen = many(bound(RoundRobin()).select_group, 12)
    np.testing.assert_array_equal(chosen, np.arange(12) % len(TASKS))


@pytest.mark.parametrize(
    "probabilities",
    [
        None,
        {"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125, "e": 0.0},
        {"e": 0.05, "d": 0.05, "c": 0.1, "b": 0.3, "a": 0.5},
    ],
)
def test_sampled_follows_the_probabilities(probabilities):
    strategy = bound(Sampled(probabilities, seed=1))
    draws = 4000
    chosen = many(strategy.select_group, draws)
    counts = np.bincount(chosen, minlength=len(TASKS))
    expected = np.array([(probabilities or {}).get(n, 0.2) for n in TASKS])
    expected = expected * draws
    assert np.all(counts[expected == 0] == 0)
    live = expected > 0
    freedom = live.sum() - 1
    chi_square = np.sum((counts[live] - expected[live]) ** 2 / expected[live])
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    # Independent of the draw before: pairs fall as the product says.
    pairs = np.zeros((len(TASKS), len(TASKS)))
    np.add.at(pairs, (chosen[:-1], chosen[1:]), 1)
    product = np.outer(expected, expected)[np.ix_(live, live)] / draws
    chi_square = np.sum((pairs[np.ix_(live, live)] - product) ** 2 / product)
    freedom = live.sum() ** 2 - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("certain", TASKS)
def test_sampled_certain_task(certain):
    probabilities = {name: float(name == certain) for name in TASKS}
    chosen = many(bound(Sampled(probabilities, seed=0)).select_group, 50)
    np.testing.assert_array_equal(chosen, TASKS.index(certain))


@pytest.mark.parametrize("id", ["round_robin", "sampled"])
def test_with_all_labels_the_choice_is_the_one_without(id):
    strategy = bound(IDS[id]())
    every = np.ones(len(TASKS), bool)
    for step in range(20):
        assert int(strategy.select_labelled_group(step, every)) == int(
            strategy.select_group(step)
        )


@pytest.mark.parametrize("id", ["round_robin", "sampled"])
@pytest.mark.parametrize("jit", [False, True])
def test_the_only_labelled_task_is_chosen(id, jit):
    import tensorflow as tf

    strategy = bound(IDS[id]())
    select = tf.function(strategy.select_labelled_group, jit_compile=jit)
    for step in range(12):
        labelled = np.arange(len(TASKS)) == step * 7 % len(TASKS)
        chosen = int(select(tf.constant(step), tf.constant(labelled)))
        assert labelled[chosen]


def test_sampled_draws_among_the_labelled_in_proportion():
    probabilities = {"a": 0.5, "b": 0.25, "c": 0.1, "d": 0.15, "e": 0.0}
    strategy = bound(Sampled(probabilities, seed=1))
    labelled = np.array([False, True, True, False, True])
    draws = 2000
    chosen = many(
        lambda step: strategy.select_labelled_group(step, labelled), draws
    )
    counts = np.bincount(chosen, minlength=5)
    expected = draws * np.array([0, 0.25, 0.1, 0, 0]) / 0.35
    assert counts[[0, 3, 4]].tolist() == [0, 0, 0]
    chi_square = np.sum((counts - expected)[1:3] ** 2 / expected[1:3])
    assert chi_square < 1 + 4 * math.sqrt(2)


def test_sampled_never_trains_a_task_of_probability_0():
    strategy = bound(Sampled({n: float(n == "a") for n in TASKS}, seed=1))
    labelled = np.array([False, True, True, True, True])
    for step in range(20):
        assert int(strategy.select_labelled_group(step, labelled)) == 0


def test_round_robin_gives_an_unlabelled_turn_to_all_others():
    strategy = bound(RoundRobin())
    labelled = np.array([True, False, True, False, True])
    chosen = many(
        lambda step: strategy.select_labelled_group(step, labelled), 500
    ).reshape(-1, 5)
    for turn in (0, 2, 4):
        assert set(chosen[:, turn]) == {turn}
    for turn in (1, 3):
        shares = np.bincount(chosen[:, turn], minlength=5)[::2] / 100
        assert np.all(np.abs(shares - 1 / 3) < 4 * math.sqrt(2 / 900))


def test_sampled_seeds_differ():
    draws = [
        tuple(many(bound(Sampled(seed=seed)).select_group, 30))
        for seed in range(5)
    ]
    assert len(set(draws)) == 5


@pytest.mark.parametrize(
    "strategy",
    [
        Alternating(shuffle=True, seed=2),
        Grouped([[name] for name in TASKS], shuffle=True, seed=2),
        AffinityGroups(seed=2),
    ],
    ids=["alternating", "grouped", "affinity_groups"],
)
def test_shuffled_orders_are_permutations(strategy):
    orders = many(bound(strategy).order_groups, 1000)
    np.testing.assert_array_equal(
        np.sort(orders), np.broadcast_to(np.arange(5), orders.shape)
    )
    # Every group at every place equally often (4 sigma).
    for place in range(5):
        share = np.bincount(orders[:, place], minlength=5) / 1000
        assert np.all(np.abs(share - 0.2) < 4 * math.sqrt(0.16 / 1000))


def test_groups_that_there_are_come_first_in_the_order():
    strategy = bound(AffinityGroups(seed=0))
    strategy.state.assigned.assign([0, 1, 0, 2, 1])
    assert strategy.groups == (("a", "c"), ("b", "e"), ("d",))
    orders = many(strategy.order_groups, 600)
    np.testing.assert_array_equal(
        np.sort(orders[:, :3]), np.broadcast_to(np.arange(3), (600, 3))
    )
    found = collections.Counter(map(tuple, orders[:, :3]))
    assert len(found) == 6
    chi_square = sum((n - 100) ** 2 for n in found.values()) / 100
    assert chi_square < 5 + 4 * math.sqrt(10)


def draws_of(strategy):
    """All that a strategy draws for one counter."""
    return {
        "sampled": lambda s: [s.select_group],
        "round_robin": lambda s: [s.select_group],
        "random_groups": lambda s: [s.assign_groups],
        "alternating": lambda s: [s.order_groups],
        "affinity_groups": lambda s: [s.order_groups],
    }[next(i for i, cls in IDS.items() if cls is type(strategy))](strategy)[0]


@pytest.mark.parametrize(
    "strategy",
    [
        Sampled(seed=11),
        Sampled(
            {"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.1}, seed=2**31 - 1
        ),
        RoundRobin(),
        RandomGroups(3, resample="step", seed=11),
        Alternating(shuffle=True, seed=11),
        AffinityGroups(seed=11),
    ],
    ids=repr,
)
def test_draws_are_the_same_in_eager_graph_and_xla(strategy):
    draw = draws_of(bound(strategy))
    in_graph = tf.function(draw)
    in_xla = tf.function(draw, jit_compile=True)
    for counter in (0, 1, 2, 99, 2**31, 2**33 + 1):
        tensor = tf.constant(counter, tf.int64)
        eager = draw(counter).numpy()
        np.testing.assert_array_equal(draw(tensor), eager)
        np.testing.assert_array_equal(in_graph(tensor), eager)
        np.testing.assert_array_equal(in_xla(tensor), eager)


# -- refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Alternating(task_slots="yes"), "task_slots"),
        (lambda: Alternating(shuffle=1), "shuffle"),
        (lambda: Alternating(shuffle=True, seed=-1), "seed"),
        (lambda: Alternating(shuffle=True, seed=1.5), "seed"),
        (lambda: Alternating(task_learning_rates={"a": 0.0}), "positive"),
        (lambda: Alternating(task_learning_rates={"a": -1}), "positive"),
        (lambda: Alternating(task_learning_rates=[1.0]), "dict"),
        (lambda: Alternating(task_learning_rates={"a": "x"}), "positive"),
        (
            lambda: Alternating(task_learning_rates={"a": float("nan")}),
            "positive",
        ),
        (
            lambda: Alternating(task_learning_rates={"a": float("inf")}),
            "positive",
        ),
        (lambda: Grouped([]), "groups"),
        (lambda: Grouped("ab"), "groups"),
        (lambda: Grouped([["a"], []]), "groups"),
        (lambda: Grouped(["ab", "cd"]), "groups"),
        (lambda: RandomGroups(0), "num_groups"),
        (lambda: RandomGroups(True), "num_groups"),
        (lambda: RandomGroups(1.5), "num_groups"),
        (lambda: RandomGroups(2, resample="batch"), "resample"),
        (lambda: RandomGroups(2, seed=-3), "seed"),
        (lambda: Sampled({"a": -0.5, "b": 1.5}), "non-negative"),
        (lambda: Sampled({"a": 0.5, "b": 0.6}), "sum to 1"),
        (lambda: Sampled({"a": float("nan"), "b": 1.0}), "sum to 1"),
        (lambda: Sampled([0.5, 0.5]), "dict"),
        (lambda: MultiAdaptive("max"), "reduction"),
        (lambda: AffinityGroups(0.0), "decay"),
        (lambda: AffinityGroups(1.5), "decay"),
        (lambda: AffinityGroups(float("nan")), "decay"),
        (lambda: AffinityGroups("0.1"), "decay"),
        (lambda: AffinityGroups(warmup=-1), "warmup"),
        (lambda: AffinityGroups(warmup=1.5), "warmup"),
        (lambda: AffinityGroups(regroup="step"), "regroup"),
        (lambda: AffinityGroups(regroup=0), "regroup"),
        (lambda: AffinityGroups(regroup=True), "regroup"),
        (lambda: AffinityGroups(preference="mean"), "preference"),
        (lambda: AffinityGroups(preference=float("inf")), "preference"),
        (lambda: AffinityGroups(task_slots="yes"), "task_slots"),
        (lambda: AffinityGroups(seed=-1), "seed"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (Grouped([["a", "b"], ["c", "d"]]), "'e'"),
        (Grouped([["a", "b"], ["c", "d", "e", "a"]]), "twice"),
        (Grouped([["a", "b"], ["c", "d", "e", "x"]]), "'x'"),
        (RandomGroups(6, seed=0), "num_groups=6"),
        (Sampled({"a": 0.5, "b": 0.5}, seed=0), "probabilities"),
        (Sampled({**dict.fromkeys(TASKS, 0.2), "x": 0.0}, seed=0), "x"),
        (Alternating(task_learning_rates={"x": 1.0}), "'x'"),
        (RoundRobin(task_learning_rates={"x": 1.0}), "'x'"),
        (
            Alternating(task_slots=False, task_learning_rates={"a": 2.0}),
            "share",
        ),
        (
            Grouped(
                [["a", "b"], ["c", "d", "e"]], task_learning_rates={"a": 2}
            ),
            "share",
        ),
        (
            RandomGroups(2, "step", seed=0, task_learning_rates={"a": 2.0}),
            "share",
        ),
    ],
)
def test_strategies_that_do_not_fit_the_tasks(strategy, words):
    with pytest.raises(ValueError, match=words):
        strategy.bind(TASKS)
    with pytest.raises(ValueError, match="in force"):
        _ = strategy.groups


def test_refused_binding_keeps_the_earlier_one():
    strategy = bound(RandomGroups(3, seed=0))
    groups = strategy.groups
    with pytest.raises(ValueError, match="num_groups"):
        strategy.bind(("a", "b"))
    assert strategy.groups == groups
