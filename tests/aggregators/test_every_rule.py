"""What holds for every aggregator: a line in `cases.AGGREGATORS` inherits it.

Errors are relative to the length of the direction or of the gradients,
whichever is longer.
"""

import itertools

import keras
import numpy as np
import pytest
from cases import AGGREGATOR, AGGREGATORS, RULES, restrict
from compiled import compiled, losses_of
from jacobians import WELL_POSED, drawn

from mtlkeras import aggregators

T, P = 3, 7
HARD = ["normal", "badscale", "conflict", "zerorow", "duprow"]
EXACT = 1e-9  # measured: 2e-13, most 1e-15
FLOAT32 = 3e-6  # measured: 7e-7, most 1e-7

every_rule = pytest.mark.parametrize("case", AGGREGATORS, ids=repr)
one_per_class = pytest.mark.parametrize("case", RULES, ids=repr)
EQUIVARIANT = [case for case in AGGREGATORS if case.equivariant]
# One per class, and those with arguments per task.
PER_TASK = [
    case
    for case in AGGREGATORS
    if case in RULES or str(restrict(case.config, [0, 1])) != str(case.config)
]


def matrices(case):
    """The matrices for which the case has one answer."""
    found = drawn(T, P)
    return {k: v for k, v in found.items() if k not in case.ill_posed}


def unit(case, jacobian):
    """The size that directions for these gradients may have."""
    size = np.linalg.norm(jacobian)
    return size**case.degree if case.degree is not None and size else 1.0


def assert_same(found, wanted, tolerance, unit, what):
    found = np.asarray(found, "float64")
    assert np.all(np.isfinite(found)), what
    size = max(np.linalg.norm(wanted), unit)
    assert np.linalg.norm(found - wanted) <= tolerance * size, what


def sequence(count=5, num_params=P):
    """Gradients, losses and live tasks of some steps."""
    rng = np.random.default_rng(5)
    for step in range(count):
        live = np.ones(T, bool)
        if step == 2:
            live[1] = False
        yield (
            rng.normal(size=(T, num_params)),
            rng.uniform(0.5, 2.0, T),
            live,
        )


@every_rule
def test_finite_for_every_matrix_at_every_scale(case):
    rule = compiled(case, T, P)
    for kind, jacobian in drawn(T, P).items():
        direction = rule(jacobian)
        assert direction.shape == (P,)
        assert np.all(np.isfinite(direction)), kind
        if kind == "zero":
            assert not direction.any()
        for scale in (1e-15, 1e15):
            scaled = rule(scale * jacobian)
            assert np.all(np.isfinite(scaled)), (kind, scale)
            if case.degree is None or kind in case.ill_posed:
                continue
            assert_same(
                scaled / scale**case.degree,
                direction,
                EXACT,
                unit(case, jacobian),
                (kind, scale),
            )


@pytest.mark.parametrize("case", EQUIVARIANT, ids=repr)
def test_relabelling_tasks_leaves_the_direction(case):
    rule = compiled(case, T, P)
    losses = losses_of(T)
    for kind, jacobian in matrices(case).items():
        direction, weights = rule(jacobian, losses), rule.weights
        for order in ([1, 2, 0], [0, 2, 1]):
            found = rule(jacobian[order], losses[order])
            size = unit(case, jacobian)
            assert_same(found, direction, EXACT, size, kind)
            # Weights of dependent gradients are not unique.
            if case.is_gramian and kind in WELL_POSED:
                np.testing.assert_allclose(
                    rule.weights, weights[order], rtol=1e-5
                )


@pytest.mark.parametrize(
    "case", [case for case in EQUIVARIANT if case.is_gramian], ids=repr
)
def test_equal_gradients_have_equal_weights(case):
    rule = compiled(case, T, P)
    rows = drawn(T, P, ["normal"])["normal"]
    for order in ([0, 1, 0], [0, 0, 1], [0, 0, 0]):
        rule(rows[order], np.ones(T))
        for i, j in itertools.combinations(range(T), 2):
            if order[i] == order[j]:
                np.testing.assert_allclose(
                    rule.weights[i], rule.weights[j], rtol=1e-5
                )


@one_per_class
def test_compiled_by_xla_equals_plain(case):
    plain = compiled(case, T, P)
    xla = compiled(case, T, P, xla=True)
    for kind, jacobian in matrices(case).items():
        wanted = plain(jacobian)
        size = unit(case, jacobian)
        assert_same(xla(jacobian), wanted, EXACT, size, kind)
    plain.rule.reset_state()
    xla.rule.reset_state()
    for arguments in sequence():
        wanted = plain.run(*arguments)
        assert_same(xla.run(*arguments), wanted, EXACT, 0.0, "sequence")


@one_per_class
def test_float32_equals_float64(case):
    double = compiled(case, T, P)
    single = compiled(case, T, P, dtype="float32")
    for kind, jacobian in drawn(T, P, [*WELL_POSED, "duprow"]).items():
        found = single(jacobian)
        assert found.dtype == "float32"
        wanted = double(jacobian.astype("float32"))
        assert_same(found, wanted, FLOAT32, unit(case, jacobian), kind)


@pytest.mark.parametrize("id", ["mgda", "normalized", "graddrop", "moco"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_inside(id, dtype):
    case = AGGREGATOR[id]
    matrix = 1e-4 * drawn(T, P, ["conflict"])["conflict"]
    jacobian = keras.ops.cast(matrix, dtype)
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(jacobian, "float32"))
    found = compiled(case, T, P, dtype=dtype)(jacobian)
    assert found.dtype.name == dtype
    wanted = compiled(case, T, P, dtype="float32")(rounded)
    # Rounded once, at the end.
    np.testing.assert_allclose(
        found.astype("float32"), wanted, rtol=4e-3, atol=1e-7
    )


@pytest.mark.parametrize("case", PER_TASK, ids=repr)
def test_a_dead_task_is_as_one_that_does_not_exist(case):
    dead, kept = 1, [0, 2]
    live = np.array([True, False, True])
    whole = compiled(case, T, P)
    part = compiled(case.for_tasks(kept), T - 1, P)
    for kind, jacobian in drawn(T, P, HARD).items():
        losses = losses_of(T)
        size = unit(case, jacobian[kept])
        wanted = part(jacobian[kept], losses[kept])
        jacobian[dead] = losses[dead] = -np.inf if kind == "normal" else np.nan
        found = whole(jacobian, losses, live)
        assert_same(found, wanted, EXACT, size, kind)
    if not case.equivariant and "leak" not in case.id:
        return  # of random orders only those of two tasks are the same
    whole.rule.reset_state()
    part.rule.reset_state()
    for jacobian, losses, _ in sequence():
        wanted = part.run(jacobian[kept], losses[kept])
        jacobian[dead] = losses[dead] = np.nan
        found = whole.run(jacobian, losses, live)
        assert_same(found, wanted, EXACT, 0.0, "sequence")


@every_rule
def test_one_live_task_gives_its_gradient(case):
    rule = compiled(case, T, P)
    signs = getattr(rule.rule, "signs", None) or [1.0] * T
    jacobian = drawn(T, P, ["badscale"])["badscale"]
    for alone in range(T):
        live = np.arange(T) == alone
        with_holes = np.where(live[:, None], jacobian, np.nan)
        losses = np.where(live, 2.0, np.nan)
        found = rule(with_holes, losses, live)
        np.testing.assert_array_equal(found, signs[alone] * jacobian[alone])
        if case.is_gramian:
            np.testing.assert_array_equal(rule.weights, live * signs)


@every_rule
def test_no_live_task_gives_zero(case):
    rule = compiled(case, T, P)
    nothing = np.full((T, P), np.nan)
    found = rule(nothing, np.full(T, np.nan), np.zeros(T, bool))
    np.testing.assert_array_equal(found, np.zeros(P))
    # And harms no later step.
    for arguments in sequence(3):
        assert np.all(np.isfinite(rule.run(*arguments)))


@every_rule
def test_config_round_trip(case):
    rule = case.aggregator()
    stored = keras.saving.serialize_keras_object(rule)
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is type(rule)
    assert again.get_config() == rule.get_config()
    assert again.same_rule(rule)
    assert rule.same_rule(again)
    assert aggregators.get(stored).same_rule(rule)
    for argument in rule.get_config():
        assert hasattr(rule, argument)


@every_rule
def test_reset_state_starts_again(case):
    rule = compiled(case, T, P)
    runs = []
    for _ in range(2):
        rule.rule.reset_state()
        assert rule.weights is None
        runs.append([rule.run(*arguments) for arguments in sequence()])
    np.testing.assert_array_equal(runs[0], runs[1])


class Holder(keras.Model):
    """A model that does nothing but hold an aggregator."""

    def __init__(self, aggregator):
        super().__init__()
        self.aggregator = aggregator
        self.build((None, 1))

    def build(self, input_shape):
        self.aggregator.build((T, 20))
        self.built = True


# Those of which a new object would not go on as the saved one does.
REMEMBERS = [
    *["pcgrad", "gradvac", "graddrop"],
    *["moco", "db_mtl", "task_tensioner", "ema_mgda"],
]


@one_per_class
def test_saved_state_goes_on(case, tmp_path):
    path = tmp_path / "holder.weights.h5"
    *before, after = sequence(12, num_params=20)
    # All in conflict, so that it matters in which order they meet.
    after[0][:] -= 0.9 * np.mean(after[0], axis=0)
    first = Holder(case.aggregator())
    for arguments in before:
        first.aggregator(*arguments)
    first.save_weights(path)
    second = Holder(case.aggregator())
    second.load_weights(path)
    wanted = np.asarray(first.aggregator(*after))
    np.testing.assert_array_equal(second.aggregator(*after), wanted)
    fresh = np.asarray(case.aggregator()(*after))
    assert np.any(fresh != wanted) == (repr(case) in REMEMBERS)


@every_rule
def test_weights_tell_the_direction(case):
    rule = compiled(case, T, P)
    rule.rule.reset_state()
    assert rule.weights is None
    if not case.is_gramian:
        return
    for jacobian, losses, live in sequence():
        direction = rule.run(jacobian, losses, live)
        assert rule.weights.shape == (T,)
        assert rule.weights.dtype == "float32"
        assert not rule.weights[~live].any()
        np.testing.assert_allclose(
            rule.weights @ jacobian, direction, atol=1e-6
        )


@pytest.mark.parametrize(
    "case", [case for case in RULES if case.is_gramian], ids=repr
)
def test_gramian_path_equals_jacobian_path(case):
    by_jacobian = compiled(case, T, P)
    by_jacobian.rule.reset_state()
    rule = case.aggregator()
    for jacobian, losses, live in list(sequence())[1:3]:
        wanted = by_jacobian.run(jacobian, losses, live)
        jacobian[~live] = 0.0
        weights = np.asarray(rule.weigh(jacobian @ jacobian.T, losses, live))
        assert weights.dtype == "float64"
        assert_same(weights @ jacobian, wanted, EXACT, 0.0, "weigh")
    # A new object, NumPy arrays, and nothing but the method.
    direction = by_jacobian(jacobian, losses)
    weights = case.aggregator().compute_weights(
        jacobian @ jacobian.T, losses if case.given.requires_losses else None
    )
    assert_same(np.asarray(weights) @ jacobian, direction, EXACT, 0.0, "")


@one_per_class
def test_wants_as_many_tasks_as_it_was_built_for(case):
    rule = case.aggregator()
    rule.build((T, P))
    name = type(rule).__name__
    with pytest.raises(ValueError, match=f"{name} was built for 3.*of 2 tasks"):
        rule(np.ones((2, P)), np.ones(2))
    with pytest.raises(
        ValueError, match=r"`\[num_tasks, num_params\]`.*\(3,\)"
    ):
        rule(np.ones(T), np.ones(T))
    with pytest.raises(ValueError, match="float dtype.*int"):
        rule(np.ones((T, P), "int32"), np.ones(T))
    if case.is_gramian:
        with pytest.raises(ValueError, match="was built for 3"):
            rule.weigh(np.ones((2, 2)), np.ones(2))
    if rule.requires_losses:
        with pytest.raises(ValueError, match="needs `task_losses`.*None"):
            rule(np.ones((T, P)))
