"""Forward and backward passes per batch, counted inside of the layers.

A counting layer is the identity; its forward and its custom gradient each add
1 to a `tf.Variable`. Calls in a graph run it, calls while tracing do not.
"""

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf

import mtlkeras
from mtlkeras.aggregators import MGDA, GradDrop
from mtlkeras.strategies import (
    AffinityGroups,
    Alternating,
    Grouped,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)

TASKS = ("a", "b", "c", "d")


class PassCounter(keras.layers.Layer):
    """Identity that counts its forward and backward passes."""

    def __init__(self, counts, key, **kwargs):
        super().__init__(**kwargs)
        # In a closure, so that Keras tracks none of it as a weight.
        forward, backward = counts.variables(key)

        @tf.custom_gradient
        def count(x):
            forward.assign_add(1)

            def gradient(upstream):
                backward.assign_add(1)
                return upstream

            return tf.identity(x), gradient

        self._count = (count,)

    def call(self, inputs):
        return self._count[0](inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class Counts:
    def __init__(self):
        self.pairs = {}

    def variables(self, key):
        self.pairs[key] = tuple(
            tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2)
        )
        return self.pairs[key]

    def take(self):
        """`{key: (forward, backward)}` since the last call."""
        taken = {}
        for key, pair in self.pairs.items():
            taken[key] = tuple(int(variable.numpy()) for variable in pair)
            for variable in pair:
                variable.assign(0)
        return taken


def counted_model(cls=mtlkeras.MultiTaskModel):
    counts = Counts()
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk_1")(inputs)
    x = PassCounter(counts, "trunk", name="trunk_count")(x)
    x = keras.layers.Dense(5, activation="tanh", name="trunk_2")(x)
    outputs = {}
    for task in TASKS:
        h = keras.layers.Dense(3, name=f"head_{task}_1")(x)
        h = PassCounter(counts, task, name=f"head_{task}_count")(h)
        outputs[task] = keras.layers.Dense(1, name=f"head_{task}_2")(h)
    return cls(inputs, outputs), counts


def counts_per_batch(strategy, batches=3, groups=None, **compile_arguments):
    """The counts of each of some batches, through `train_on_batch`."""
    model, counts = counted_model()
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=nets.losses(TASKS),
        strategy=strategy,
        **compile_arguments,
    )
    if groups is not None:
        strategy.state.assigned.assign(groups)
    x, y = nets.regression_data(TASKS, rows=8)
    taken = []
    counts.take()
    for _ in range(batches):
        before = nets.values(model.trainable_variables)
        model.train_on_batch(x, y)
        after = nets.values(model.trainable_variables)
        assert any((a != b).any() for a, b in zip(before, after, strict=True))
        taken.append(counts.take())
    return taken


def heads(**special):
    return {task: special.get(task, (1, 1)) for task in TASKS}


@pytest.mark.parametrize(
    ("rule", "trunk"),
    [
        (MGDA(), (1, 4)),
        (GradDrop(), (1, 4)),
        # The weighted sum goes back once more, through everything.
        (MGDA(memory="low"), (1, 5)),
        (MGDA(gradients_at="features"), (1, 1)),
        (GradDrop(gradients_at="features"), (1, 1)),
    ],
    ids=["products", "rows", "low", "features", "rows at features"],
)
def test_passes_of_aggregators(rule, trunk):
    for counts in counts_per_batch("joint", aggregator=rule):
        assert counts.pop("trunk") == trunk
        again = rule.memory == "low"
        assert counts == heads(**dict.fromkeys(TASKS, (1, 1 + again)))


def test_the_counter_counts_stock_keras():
    """The instrument itself, on a model that is not ours."""
    model, counts = counted_model(keras.Model)
    model.compile("sgd", loss=nets.losses(TASKS))
    x, y = nets.regression_data(TASKS, rows=8)
    counts.take()
    for _ in range(2):
        model.train_on_batch(x, y)
        assert counts.take() == {"trunk": (1, 1), **heads()}
    model.test_on_batch(x, y)
    forward_only = dict.fromkeys(TASKS, (1, 0))
    assert counts.take() == {"trunk": (1, 0), **forward_only}
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_sum(v) for v in model(x, training=True).values()]
    for loss in losses:
        tape.gradient(loss, model.trainable_variables[0].value)
    assert counts.take()["trunk"] == (1, len(TASKS))


@pytest.mark.parametrize(
    ("strategy", "trunk"),
    [
        ("joint", (1, 1)),
        ("alternating", (4, 4)),
        (Alternating(task_slots=False), (4, 4)),
        (Alternating(shuffle=True, seed=0), (4, 4)),
        (Grouped([list(TASKS)]), (1, 1)),
        (Grouped([["a", "c"], ["b"], ["d"]]), (3, 3)),
        (Grouped([["a", "c"], ["b", "d"]], shuffle=True, seed=0), (2, 2)),
        (RandomGroups(2, seed=0), (2, 2)),
        (RandomGroups(3, seed=1), (3, 3)),
        ("multi_adaptive", (1, 4)),
        (MultiAdaptive("mean"), (1, 4)),
    ],
    ids=repr,
)
def test_passes_of_strategies_that_visit_every_task(strategy, trunk):
    """The heads run once: in the sub-step of their own group only."""
    for taken in counts_per_batch(strategy):
        assert taken == {"trunk": trunk, **heads()}


@pytest.mark.parametrize(
    "strategy",
    ["round_robin", RoundRobin(task_slots=False), Sampled(seed=3)],
    ids=repr,
)
def test_passes_of_strategies_that_visit_one_task(strategy):
    visited = []
    for taken in counts_per_batch(strategy, batches=5):
        assert taken.pop("trunk") == (1, 1)
        ran = [task for task, count in taken.items() if count != (0, 0)]
        assert len(ran) == 1
        assert taken[ran[0]] == (1, 1)
        visited += ran
    if not isinstance(strategy, Sampled):
        assert visited == [*TASKS, TASKS[0]]
    else:
        assert len(set(visited)) > 1


def test_resampled_groups_run_the_trunk_once_per_group():
    """Heads of other groups may be computed; the trunk may not."""
    for taken in counts_per_batch(RandomGroups(2, resample="step", seed=0)):
        assert taken["trunk"] == (2, 2)
        assert all(max(taken[task]) <= 2 for task in TASKS)


@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 2, 3]])
def test_passes_of_measured_groups(groups):
    """All heads in all passes, and one forward pass at the end."""
    strategy = AffinityGroups(seed=0)
    for taken in counts_per_batch(strategy, groups=groups):
        count = max(groups) + 1
        every = ["trunk", *TASKS]
        assert taken == dict.fromkeys(every, (count + 1, count))


@pytest.mark.parametrize("strategy", ["alternating", "round_robin"])
def test_passes_with_metrics_and_steps_per_execution(strategy):
    """Metrics come from the sub-steps' own predictions, in `fit` as well."""
    model, counts = counted_model()
    model.compile(
        keras.optimizers.Adam(0.01),
        loss=nets.losses(TASKS),
        metrics={task: ["mae", "mse"] for task in TASKS},
        steps_per_execution=2,
        strategy=strategy,
    )
    x, y = nets.regression_data(TASKS, rows=32)
    counts.take()
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    trunk = {"alternating": 4, "round_robin": 1}[strategy] * 8
    head = {"alternating": 8, "round_robin": 2}[strategy]
    assert counts.take() == {
        "trunk": (trunk, trunk),
        **dict.fromkeys(TASKS, (head, head)),
    }


@pytest.mark.parametrize("strategy", ["alternating", "multi_adaptive"])
def test_passes_of_evaluate_and_predict(strategy):
    model, counts = counted_model()
    model.compile("adam", loss=nets.losses(TASKS), strategy=strategy)
    x, y = nets.regression_data(TASKS, rows=16)
    counts.take()
    model.evaluate(x, y, batch_size=8, verbose=0)
    once_per_batch = dict.fromkeys(["trunk", *TASKS], (2, 0))
    assert counts.take() == once_per_batch
    model.predict(x, batch_size=8, verbose=0)
    assert counts.take() == once_per_batch


# -- state bytes --------------------------------------------------------------


def sizes(model):
    shared = sum(int(np.prod(v.shape)) for v in model.shared_variables)
    own = {
        task: sum(int(np.prod(v.shape)) for v in model.task_variables(task))
        for task in TASKS
    }
    return shared, own


@pytest.mark.parametrize(
    ("strategy", "copies"),
    [
        ("alternating", 4),
        ("round_robin", 4),
        ("multi_adaptive", 4),
        (Sampled(seed=0), 4),
        (Alternating(shuffle=True, seed=0), 4),
        (Alternating(task_slots=False), 1),
        (RoundRobin(task_slots=False), 1),
        (Grouped([["a", "c"], ["b"], ["d"]]), 3),
        (RandomGroups(2, seed=0), 2),
        (RandomGroups(2, resample="step", seed=0), 2),
        (RandomGroups(3, resample="epoch", seed=0), 3),
        (AffinityGroups(seed=0), 4),
        (AffinityGroups(task_slots=False, seed=0), 1),
        ("joint", 1),
    ],
    ids=repr,
)
def test_adam_slots_are_two_copies(strategy, copies):
    """`2 (copies P_shared + sum P_head)` floats and not one more."""
    model, _ = counted_model()
    model.compile("adam", loss=nets.losses(TASKS), strategy=strategy)
    shared, own = sizes(model)
    assert shared == 6 * 8 + 8 + 8 * 5 + 5
    assert own == dict.fromkeys(TASKS, 5 * 3 + 3 + 3 + 1)
    floats = 2 * (copies * shared + sum(own.values()))
    counters = {"iteration", "learning_rate", "draw"}
    state = [v for v in model.optimizer.variables if v.name not in counters]
    assert sum(int(np.prod(v.shape)) for v in state) == floats
    held = sum(v.value.numpy().nbytes for v in state)
    assert held == 4 * floats
    # Nothing is counted twice, and nothing is hidden in the clones.
    assert len({id(v) for v in state}) == len(state)
    for clone in getattr(model.optimizer, "optimizers", []):
        assert {id(v) for v in clone.variables} <= {
            id(v) for v in model.optimizer.variables
        }
