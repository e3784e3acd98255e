"""Groups by measured affinity: formulas, clusters, planted and null tasks."""

import sys
import warnings

import affinity
import keras
import nets
import numpy as np
import pytest

import mtlkeras
from mtlkeras.strategies import (
    AffinityGroups,
    Grouped,
    RandomGroups,
    task_affinity,
)
from mtlkeras.strategies.task_affinity import TaskAffinity, cluster

TASKS = tuple("abcdef")
ALONE = tuple((name,) for name in TASKS)
FAMILIES = (tuple("abc"), tuple("def"))


# -- the formulas -------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.1, 1.0])
def test_affinities_of_recorded_losses(decay):
    """Groups of all sizes, bad and negative losses, tasks without labels."""
    rng = np.random.default_rng(0)
    state = TaskAffinity(5, decay)
    expected = np.zeros((5, 5))
    for _ in range(60):
        before = rng.normal(1.0, 1.0, size=5)
        after = before * rng.uniform(0.5, 1.5, size=5)
        bad = rng.integers(5, size=3)
        before[bad[0]], after[bad[1]], before[bad[2]] = np.nan, np.inf, 0.0
        if rng.random() < 0.5:
            before = np.where(np.isfinite(before) & (before != 0), before, 1)
            after = np.where(np.isfinite(after), after, 1)
        labelled = rng.random(5) < 0.8
        stepped = labelled & (rng.random(5) < 0.5)
        state.credit(before, after, stepped, labelled)
        expected = affinity.credited(
            expected, np.where(labelled, before, np.nan), after, stepped, decay
        )
        np.testing.assert_allclose(state.matrix, expected, rtol=1e-12)
    assert (expected != 0).mean() > 0.9
    assert (expected < 0).any()


def test_two_steps_by_hand():
    state = TaskAffinity(3, 0.5)
    everyone = np.ones(3, bool)

    def credit(before, after, stepped):
        state.credit(np.array(before), np.array(after), stepped, everyone)
        return state.matrix.numpy()

    # Alone: 0.2 for itself, -0.1 for the second, nothing for the third.
    found = credit([1.0, 2.0, 3.0], [0.8, 2.2, 3.0], [True, False, False])
    expected = [[0.1, -0.05, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-15)
    # Two together share what they did; where one lost, both are blamed, and
    # the loser's own step is left out.
    found = credit([1.0, 1.0, 1.0], [0.6, 1.2, 0.8], [True, True, False])
    expected = [
        [0.5 * 0.1 + 0.5 * 0.2, 0.5 * -0.05 - 0.5 * 0.2, 0.5 * 0.1],
        [0.5 * -0.2, 0, 0.5 * 0.1],
        [0, 0, 0],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-15)


# -- clusters -----------------------------------------------------------------


def names_of(groups):
    """Partition of `abc...` by labels, as tuples of names."""
    return tuple(
        tuple(TASKS[i] for i in np.flatnonzero(groups == k))
        for k in range(max(groups) + 1)
    )


@pytest.mark.parametrize("preference", ["median", 0.0, 0.5])
def test_clusters_are_those_of_scikit_learn(preference):
    rng = np.random.default_rng(0)
    partitions = set()
    for _ in range(30):
        matrix = 0.3 * rng.normal(size=(6, 6))
        np.fill_diagonal(matrix, rng.uniform(0.5, 2.0, size=6))
        matrix[rng.integers(6), :] *= rng.choice([0.0, 1.0])
        found = cluster(matrix, preference)
        assert names_of(found) == affinity.groups(matrix, TASKS, preference)
        partitions.add(names_of(found))
    assert len(partitions) > 5


def test_tasks_that_never_helped_themselves_stay_alone():
    matrix = np.ones((4, 4))
    matrix[2, 2] = 0
    np.testing.assert_array_equal(cluster(matrix, 0.5), [0, 0, 1, 0])
    np.testing.assert_array_equal(cluster(np.zeros((3, 3)), 0.5), [0, 1, 2])


@pytest.mark.parametrize(
    ("similarity", "expected"), [(0.6, [0, 0]), (0.4, [0, 1]), (-1.0, [0, 1])]
)
def test_two_tasks_go_together_above_the_preference(similarity, expected):
    matrix = np.array([[1.0, similarity], [similarity, 1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(cluster(matrix, 0.5), expected)


def test_groups_stay_where_none_emerge(monkeypatch):
    state = TaskAffinity(3, 0.5)
    state.matrix.assign(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]))
    state.form_groups(0.5, 1)
    np.testing.assert_array_equal(state.assigned, [0, 0, 1])
    tried = []

    def never(similarity, damping, max_iter, **arguments):
        tried.append(damping)
        return [], np.full(3, -1), max_iter

    monkeypatch.setattr(
        task_affinity,
        "import_affinity_propagation",
        lambda: (never, UserWarning),
    )
    state.form_groups(0.5, 2)
    np.testing.assert_array_equal(state.assigned, [0, 0, 1])
    assert len(set(tried)) == len(tried) > 1
    state.matrix.assign(np.full((3, 3), 1e-320) * [1, 1e300, 1])
    state.form_groups(0.5, 3)
    assert int(state.formed_at) == 3


# -- planted and null tasks ---------------------------------------------------


class Shift(keras.layers.Layer):
    """Adds a weight: a head that cannot turn a feature around."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=(1,), name="shift")

    def call(self, inputs):
        return inputs + self.shift


def planted_model():
    """One linear feature that all tasks share."""
    inputs = keras.Input((8,))
    feature = keras.layers.Dense(1, use_bias=False)(inputs)
    outputs = {name: Shift(name=name)(feature) for name in TASKS}
    return mtlkeras.MultiTaskModel(inputs, outputs)


def null_model():
    inputs = keras.Input((8,))
    x = keras.layers.Dense(16, activation="tanh")(inputs)
    outputs = {name: keras.layers.Dense(1, name=name)(x) for name in TASKS}
    return mtlkeras.MultiTaskModel(inputs, outputs)


def data(kind, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1600, 8))
    if kind == "planted":
        direction = rng.normal(size=(8, 1))
        signs = np.array([1, 1, 1, -1, -1, -1])
        weights = direction * signs / np.linalg.norm(direction)
        weights += 0.1 * rng.normal(size=(8, 6))
    else:
        weights = rng.normal(size=(8, 6)) / np.sqrt(8)
    y = x @ weights + 0.3 * rng.normal(size=(1600, 6))
    y = {name: y[:, [i]].astype("float32") for i, name in enumerate(TASKS)}
    return x.astype("float32"), y


class Watch(keras.callbacks.Callback):
    """The partition after every epoch."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.update_strategy.groups)


class Trainer:
    """One model, traced once, that is trained anew for each seed."""

    def __init__(self, kind, optimizer, **arguments):
        self.kind = kind
        self.build = planted_model if kind == "planted" else null_model
        self.model = self.build()
        self.model.compile(
            optimizer,
            loss=nets.losses(TASKS),
            strategy=AffinityGroups(warmup=50, seed=0, **arguments),
            steps_per_execution=50,
        )
        self.variables = [
            *self.model.optimizer.variables,
            *self.model.update_strategy.state.variables,
        ]
        self.initial = nets.values(self.variables)

    def partitions(self, seeds):
        """Lists of the partitions after each of three epochs, by seed."""
        found = []
        for seed in seeds:
            keras.utils.set_random_seed(seed)
            self.model.set_weights(self.build().get_weights())
            for variable, value in zip(
                self.variables, self.initial, strict=True
            ):
                variable.assign(value)
            x, y = data(self.kind, seed)
            watch = Watch()
            self.model.fit(
                x, y, batch_size=32, epochs=3, verbose=0, callbacks=[watch]
            )
            found.append(watch.seen)
        return found


@pytest.mark.parametrize(
    ("optimizer", "task_slots"),
    [
        (lambda: keras.optimizers.SGD(0.05), False),
        (lambda: keras.optimizers.Adam(0.01), True),
    ],
    ids=["sgd", "adam"],
)
def test_recovers_planted_families(optimizer, task_slots):
    """Two families of linear tasks that want opposite features."""
    trainer = Trainer("planted", optimizer(), task_slots=task_slots)
    for found in trainer.partitions(range(3)):
        assert found == [FAMILIES] * 3


def test_leaves_unrelated_tasks_alone():
    """Independent linear tasks: after no epoch, for no seed, are two joined.

    With the median, the control, always some are, by chance.
    """
    trainer = Trainer("null", keras.optimizers.Adam(0.01))
    for found in trainer.partitions(range(3)):
        assert found == [ALONE] * 3
    trainer.model.update_strategy.preference = "median"
    by_chance = [seen[0] for seen in trainer.partitions(range(3))]
    assert ALONE not in by_chance
    assert len(set(by_chance)) == 3


# -- in a model ---------------------------------------------------------------


def in_force(strategy, groups=None, model=None, **options):
    """A compiled model with the given partition, as numbers."""
    model = model or nets.mlp()
    options = {"optimizer": keras.optimizers.SGD(0.1), **options}
    model.compile(loss=nets.losses(), strategy=strategy, **options)
    if groups is not None:
        model.update_strategy.state.assigned.assign(groups)
    return model


def test_groups_change_without_a_new_trace():
    traced = []

    def counting(y_true, y_pred):
        traced.append(1)
        return keras.losses.mean_squared_error(y_true, y_pred)

    model = nets.mlp()
    strategy = AffinityGroups(0.5, 0, 1, seed=0)
    model.compile("sgd", {n: counting for n in nets.TASKS}, strategy=strategy)
    x, y = nets.regression_data(rows=8)
    model.train_on_batch(x, y)
    once = len(traced)
    partitions = set()
    for groups in ([0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 0, 1]):
        affinity = np.equal.outer(groups, groups).astype("float64")
        strategy.state.matrix.assign(10 * affinity)
        model.train_on_batch(x, y)
        partitions.add(model.update_strategy.groups)
    assert len(partitions) == 4
    assert len(traced) == once


@pytest.mark.parametrize("balancer", [None, "geometric_mean"])
@pytest.mark.parametrize("task_slots", [False, True])
def test_one_group_of_all_tasks_is_joint(task_slots, balancer):
    x, y = nets.regression_data(rows=16)
    weights = []
    for strategy in (
        AffinityGroups(task_slots=task_slots),
        Grouped([nets.TASKS]),
    ):
        groups = [0, 0, 0] if isinstance(strategy, AffinityGroups) else None
        model = in_force(
            strategy,
            groups,
            optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
            balancer=balancer,
        )
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        weights.append(nets.values(model.weights))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_when_groups_are_formed():
    """Not in the warm-up, and every `regroup` batches from then on."""
    x, y = nets.regression_data(rows=8)
    model = in_force(
        AffinityGroups(warmup=4, regroup=3, seed=0), run_eagerly=True
    )
    formed = []
    for _ in range(9):
        model.train_on_batch(x, y)
        formed.append(int(model.update_strategy.state.formed_at))
    # At batch 3 it is too early; 4 is the first after the warm-up.
    assert formed == [0, 0, 0, 4, 4, 6, 6, 6, 9]
    model = in_force(AffinityGroups(warmup=2, seed=0), run_eagerly=True)
    formed = []
    for _ in range(3):
        model.fit(x, y, verbose=0)
        formed.append(int(model.update_strategy.state.formed_at))
    assert formed == [0, 2, 3]


def test_another_model_starts_anew():
    """An object given to two models, or again after another strategy."""
    strategy = AffinityGroups(0.5, 100, seed=0)
    x, y = nets.regression_data(rows=8)
    model = in_force(strategy, run_eagerly=True)
    model.train_on_batch(x, y)
    assert model.update_strategy is strategy
    measured = strategy.affinity
    assert measured.all()
    other = in_force(strategy, run_eagerly=True)
    assert other.update_strategy == strategy
    assert not other.update_strategy.affinity.any()
    # An equal one keeps what was measured, another one does not.
    equal = AffinityGroups(0.5, 100, seed=0)
    model.fit(x, y, epochs=0, verbose=0, strategy=equal)
    np.testing.assert_array_equal(model.update_strategy.affinity, measured)
    model.fit(x, y, epochs=0, verbose=0, strategy="joint")
    model.fit(x, y, epochs=0, verbose=0, strategy=strategy)
    assert not model.update_strategy.affinity.any()


def test_affinity_is_a_copy():
    model = in_force(AffinityGroups(seed=0))
    affinity = model.update_strategy.affinity
    assert affinity.shape == (3, 3)
    affinity[:] = 1
    assert not model.update_strategy.affinity.any()
    with pytest.raises(ValueError, match="in force"):
        _ = AffinityGroups(seed=0).affinity


def test_a_subclass_that_meets_its_data_in_training():
    """Its tasks and its state are known when `fit` begins."""
    x, y = nets.regression_data(rows=8)
    model = nets.Subclassed()
    in_force(AffinityGroups(0.5, 0, 1, "median", seed=0), model=model)
    for _ in range(2):
        model.fit(x, y, verbose=0)
    assert model.update_strategy.affinity.all()
    groups = model.update_strategy.groups
    assert len(groups) < 3
    assert sorted(sum(groups, ())) == sorted(nets.TASKS)


def test_a_bad_label_reaches_no_other_task_of_a_subclass():
    """Its loss is measured in every sub-step, and has a gradient of NaN."""
    states = []
    for bad in (np.inf, np.nan):
        x, y = nets.regression_data(rows=8)
        y["middle"][...] = bad
        model = nets.Subclassed()
        keras.utils.set_random_seed(0)
        model(x)
        in_force(AffinityGroups(0.5, seed=0), model=model, run_eagerly=True)
        model.train_on_batch(x, y)
        affinity = model.update_strategy.affinity
        states.append(nets.values(model.weights) + [affinity])
    nets.assert_same_bits(*states)
    assert not affinity[1].any()
    assert not affinity[:, 1].any()
    assert np.count_nonzero(affinity) == 4


def test_losses_after_the_last_step_are_measured():
    """One batch by hand: each row is what the task's own step did."""
    x, y = nets.regression_data(rows=8)
    model = in_force(AffinityGroups(1.0, 100, seed=0), run_eagerly=True)
    twin = in_force("alternating", run_eagerly=True)
    order = model.update_strategy.order_groups(0)
    model.train_on_batch(x, y)
    for k in order:
        name = nets.TASKS[int(k)]
        before = twin.evaluate(x, y, verbose=0, return_dict=True)
        only = {n: y[n] if n == name else np.full_like(y[n], np.nan) for n in y}
        twin.train_on_batch(x, only)
        after = twin.evaluate(x, y, verbose=0, return_dict=True)
        gains = [1 - after[f"{n}_loss"] / before[f"{n}_loss"] for n in y]
        np.testing.assert_allclose(
            model.update_strategy.affinity[int(k)], gains, atol=1e-5
        )
        assert np.abs(gains).min() > 1e-4


# -- what is said -------------------------------------------------------------


def test_without_scikit_learn(monkeypatch):
    for module in ("sklearn", "sklearn.cluster"):
        monkeypatch.setitem(sys.modules, module, None)
    x, y = nets.regression_data(rows=8)
    model = in_force(AffinityGroups(seed=0), run_eagerly=True)
    with pytest.raises(ImportError, match=r"mtlkeras\[clustering\]"):
        model.fit(x, y, verbose=0)


def test_a_file_without_affinities(tmp_path):
    """Weights saved under another strategy: told, and measured anew."""
    other = RandomGroups(3, "epoch", seed=0)
    other = in_force(other, run_eagerly=True)
    other.save_weights(tmp_path / "model.weights.h5")
    model = in_force(AffinityGroups(seed=0), run_eagerly=True)
    with pytest.warns(UserWarning, match="no task affinities"):
        model.load_weights(tmp_path / "model.weights.h5")
    assert model.update_strategy.groups == tuple((n,) for n in nets.TASKS)


def test_one_object_is_for_the_tasks_of_one_model():
    strategy = AffinityGroups(seed=0)
    strategy.bind(("a", "b"))
    with pytest.raises(ValueError, match="in use for the tasks"):
        strategy.bind(("a", "b", "c"))
