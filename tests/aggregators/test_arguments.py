"""Arguments that are refused, and aggregators as objects."""

import keras
import numpy as np
import pytest
from cases import AGGREGATOR, RULES

from mtlkeras import aggregators
from mtlkeras.aggregators import GramianAggregator

J = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])

REFUSED = [
    ("MGDA", {"normalization": "l1"}, r"None, 'l2'.*normalization='l1'"),
    ("CAGrad", {"c": -0.1}, r"`c` must be 0 or larger.*c=-0.1"),
    ("CAGrad", {"rescale": 3}, r"`rescale` must be 0.*rescale=3"),
    ("NashMTL", {"max_norm": 0.0}, r"positive or None.*max_norm=0.0"),
    ("NashMTL", {"update_every": 0}, r"positive integer.*update_every=0"),
    ("FairGrad", {"alpha": 0.0}, r"positive.*'sum'.*alpha=0.0"),
    ("AlignedMTL", {"scale": "max"}, r"'min', 'median' or 'rmse'.*'max'"),
    ("PCGrad", {"order": "falling"}, r"'random' or 'ascending'.*'falling'"),
    ("GradVac", {"order": 1}, r"'random' or 'ascending'.*order=1"),
    ("GradVac", {"beta": 1.5}, r"`beta` must be within 0 and 1.*beta=1.5"),
    ("GradDrop", {"leak": 1.1}, r"within 0 and 1, or one per task.*leak=1.1"),
    ("GradDrop", {"leak": [0.5, -1.0]}, r"within 0 and 1.*\[0.5, -1.0\]"),
    ("MoCo", {"beta": 0.0}, r"must be positive.*beta=0.0"),
    ("MoCo", {"projection": "none"}, r"'simplex' or 'softmax'.*'none'"),
    ("DBMTL", {"beta": 1.0}, r"less than 1.*beta=1.0"),
    ("Normalized", {"signs": [1, 2]}, r"1 or -1 for each task.*2.0"),
    ("TaskTensioner", {"alpha": 2.0}, r"within 0 and 1.*alpha=2.0"),
    ("TaskTensioner", {"window": 0}, r"positive integer.*window=0"),
    ("EMA", {"aggregator": "moco"}, r"`GramianAggregator`.*MoCo"),
    ("EMA", {"aggregator": "mean", "momentum": 1.0}, r"less than 1.*1.0"),
    ("Mean", {"preference": [1.0, -1.0]}, r"non-negative.*\[1.0, -1.0\]"),
    ("UPGrad", {"preference": [0.0, 0.0]}, r"positive sum.*\[0.0, 0.0\]"),
    ("Mean", {"memory": "medium"}, r"\('high', 'low'\).*memory='medium'"),
    ("Sum", {"gradients_at": "layers"}, r"gradients_at='layers'"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_message_says_what_must_hold_and_what_came(name, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        getattr(aggregators, name)(**arguments)


@pytest.mark.parametrize(
    "rule",
    [
        aggregators.Mean([1, 2, 3]),
        aggregators.UPGrad([1, 2, 3]),
        aggregators.Normalized([1, 1, -1]),
        aggregators.GradDrop([0.1, 0.2, 0.3]),
    ],
)
def test_one_number_per_task(rule):
    with pytest.raises(ValueError, match="for each of the 2 tasks.*Received"):
        rule(J)


@pytest.mark.parametrize(
    "rule",
    [
        aggregators.DBMTL(),
        aggregators.TaskTensioner(),
        aggregators.MGDA(normalization="loss"),
        aggregators.MGDA(normalization="loss+"),
        aggregators.EMA(aggregators.MGDA(normalization="loss")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("loss", [0.0, -1.0])
def test_losses_that_are_not_positive(rule, loss):
    """An error for numbers; in a tensor, the task is left out."""
    with pytest.raises(ValueError, match=r"positive `task_losses`.*\[1.0, "):
        rule(J, np.array([1.0, loss]))
    rule(J, [1.0, loss], live=[True, False])
    direction = rule(J, keras.ops.convert_to_tensor([1.0, loss]))
    np.testing.assert_array_equal(direction, J[0])


def test_vectors_are_as_long_as_there_are_tasks():
    """A shorter one would broadcast."""
    rule = aggregators.MGDA(normalization="loss")
    for arguments in (
        {"task_losses": [1.0]},
        {"task_losses": 1.0},
        {"task_losses": [1.0, 1.0], "live": [True]},
    ):
        with pytest.raises(ValueError, match=r"\[num_tasks\]`, here \(2,\)"):
            rule(J, **arguments)
        with pytest.raises(ValueError, match=r"\[num_tasks\]`, here \(2,\)"):
            rule.weigh(J @ J.T, **arguments)
    with pytest.raises(ValueError, match=r"`gramian`.*\(2, 3\)"):
        aggregators.MGDA().weigh(J)


@pytest.mark.parametrize("case", RULES, ids=repr)
def test_a_single_task_has_its_gradient(case):
    rule = case.aggregator(tasks=[0])
    row = np.array([[3.0, -4.0]])
    sign = case.config.get("signs") or [1]
    for _ in range(2):
        direction = rule(row, np.ones(1))
        np.testing.assert_array_equal(direction, sign[0] * row[0])


def test_groups_take_their_own_arguments_per_task():
    rule = aggregators.EMA(aggregators.Mean([0.1, 0.2, 0.3, 0.4, 1.0]))
    first, second = rule.for_groups(((0, 3), (1, 2, 4)))
    assert first.aggregator.preference == [0.1, 0.4]
    assert second.aggregator.preference == [0.2, 0.3, 1.0]
    direction = second(np.eye(3), np.ones(3))
    np.testing.assert_allclose(direction, [0.2, 0.3, 1.0])
    signed = aggregators.Normalized([1, -1, 1]).for_groups(((0,), (1, 2)))
    assert [a.signs for a in signed] == [[1.0], [-1.0, 1.0]]
    leaky = aggregators.GradDrop(0.5).for_groups(((0,), (1, 2)))
    assert [a.leak for a in leaky] == [0.5, 0.5]


def test_dtypes_of_a_gramian():
    with pytest.raises(ValueError, match="`gramian` must be of a float dtype"):
        aggregators.MGDA().weigh(np.eye(2, dtype="int64"))
    for dtype in ("float16", "float32", "float64"):
        weights = aggregators.MGDA().compute_weights(np.eye(2, dtype=dtype))
        np.testing.assert_allclose(weights, [0.5, 0.5])


def test_lists_are_taken():
    rule = aggregators.MGDA("loss")
    found = rule(J.tolist(), [1.0, 2.0], [True, True])
    np.testing.assert_allclose(found, rule(J, np.array([1.0, 2.0])), rtol=1e-6)
    alone = rule(J.tolist(), [1.0, float("nan")], [True, False])
    np.testing.assert_array_equal(alone, J[0])


@pytest.mark.parametrize("case", RULES, ids=repr)
def test_groups_have_state_of_their_own(case):
    rule = case.aggregator()
    assert rule.for_groups(((0, 1, 2),)) == [rule]
    groups = ((3, 0, 1), (5, 2, 4))
    if case.id == "sum":  # used before by itself
        rule(np.eye(3))
    parts = rule.for_groups(groups)
    assert [type(part) for part in parts] == [type(rule)] * 2
    assert all(part is not rule for part in parts)
    assert all(part.same_rule(rule) for part in parts)
    again = rule.for_groups(groups)
    assert [part is other for part, other in zip(parts, again, strict=True)]
    if case.id not in ("sum", "moco", "pcgrad", "ema_mgda"):
        return
    # The weights of all tasks in the order of the model.
    assert rule.last_task_weights is None
    rng = np.random.default_rng(0)
    for part in parts:
        part(rng.normal(size=(3, 7)))
    weights = rule.last_task_weights
    assert weights.shape == (6,)
    for part, group in zip(parts, groups, strict=True):
        np.testing.assert_array_equal(
            weights[list(group)], part.last_task_weights
        )
    # One reset for all.
    rule.reset_state()
    assert rule.last_task_weights is None


def test_same_rule_looks_at_arguments_and_not_at_names():
    one = aggregators.EMA(aggregators.CAGrad(0.5), name="first")
    assert one.same_rule(aggregators.EMA(aggregators.CAGrad(0.5, name="x")))
    assert not one.same_rule(aggregators.EMA(aggregators.CAGrad(0.6)))
    assert not one.same_rule(aggregators.CAGrad(0.5))
    assert not aggregators.Mean().same_rule(aggregators.Sum())


def test_ema_takes_what_its_rule_says_of_memory_and_place():
    inner = aggregators.MGDA(gradients_at="features", memory="low")
    rule = aggregators.EMA(inner)
    assert (rule.gradients_at, rule.memory) == ("features", "low")
    assert aggregators.EMA(aggregators.MGDA("loss")).requires_losses


def test_which_rules_see_features_and_losses():
    without_features = {
        case.id for case in RULES if not case.given.allows_features
    }
    assert without_features == {"moco", "db_mtl"}
    needs = {id for id, c in AGGREGATOR.items() if c.given.requires_losses}
    assert needs == {
        "mgda_loss",
        "moco_scaled",
        "db_mtl",
        "db_mtl_decayed",
        "task_tensioner",
        "task_tensioner_short",
    } & set(AGGREGATOR)


def test_a_rule_of_ones_own():
    @keras.saving.register_keras_serializable("test_arguments")
    class Longest(GramianAggregator):
        """All weight on the longest gradient."""

        def compute_weights(self, gramian, task_losses=None, live=None):
            longest = keras.ops.argmax(keras.ops.diagonal(gramian))
            return keras.ops.one_hot(longest, gramian.shape[0], dtype="float64")

    rule = Longest()
    np.testing.assert_array_equal(rule(J), J[1])
    np.testing.assert_array_equal(rule.last_task_weights, [0, 1])
    np.testing.assert_array_equal(rule(J, live=[True, False]), J[0])
    stored = keras.saving.serialize_keras_object(rule)
    assert aggregators.get(stored).same_rule(rule)
    average = aggregators.EMA(Longest(), momentum=0.5)
    average(J)
    np.testing.assert_array_equal(average(J[::-1]), J.mean(0))


def test_a_solver_may_be_compiled_by_others():
    calls = []

    def wrap(function):
        def wrapped(*arguments):
            calls.append(function)
            return function(*arguments)

        return wrapped

    for case in RULES:
        if not case.is_gramian:
            continue
        rule = case.aggregator()
        rule.build((3, 7))
        rule.compile_solver(wrap)
        before = len(calls)
        rule(np.eye(3, 7), np.ones(3))
        assert len(calls) - before == 1, case.id
        refuses = case.aggregator()
        refuses.supports_jit = False
        if case.id.startswith("ema"):
            refuses.aggregator.supports_jit = False
        refuses.build((3, 7))
        refuses.compile_solver(wrap)
        refuses(np.eye(3, 7), np.ones(3))
        assert len(calls) - before == 1, case.id
