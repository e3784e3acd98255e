"""What holds for every balancer: a line in `cases.BALANCERS` inherits it."""

import keras
import numpy as np
import pytest
from balancing import Balancing, compiled, losses_of
from cases import BALANCED, BALANCERS

from mtlkeras import balancers

T = len(BALANCED)
EXACT = 1e-10  # measured: 1e-14

every_balancer = pytest.mark.parametrize("case", BALANCERS, ids=repr)
FORMS = {*balancers.ids(), "famo_same_batch", "stch_log_warmup"}
one_per_class = pytest.mark.parametrize(
    "case", [case for case in BALANCERS if case.id in FORMS], ids=repr
)


def chosen(**attributes):
    """The cases that have these attributes."""
    found = [
        case
        for case in BALANCERS
        if all(getattr(case, k) == v for k, v in attributes.items())
    ]
    return pytest.mark.parametrize("case", found, ids=repr)


def after_some_batches(case):
    balancing = compiled(case).start()
    balancing.run(losses_of(T))
    return balancing


@every_balancer
def test_weights_are_the_derivatives_of_the_total(case):
    balancer = after_some_batches(case).balancer
    losses = np.array([0.3, 2.0, 7.0])
    found = keras.ops.convert_to_numpy(balancer.compute_weights(losses))
    if isinstance(balancer, balancers.FAMO):
        # Its total has a constant that depends on the losses.
        logits = keras.ops.convert_to_numpy(balancer.logits)
        parts = np.exp(logits) / (losses + balancer.offset)
        np.testing.assert_allclose(found, parts / parts.sum(), rtol=EXACT)
        return
    for k in range(T):
        step = 1e-5 * losses[k] * np.eye(T)[k]
        above, below = balancer(losses + step), balancer(losses - step)
        wanted = float(above - below) / (2 * step[k])
        np.testing.assert_allclose(found[k], wanted, rtol=1e-8, atol=1e-8)


@every_balancer
def test_measured_weights_are_those_of_the_last_losses(case):
    balancing = after_some_batches(case)
    balancer = balancing.balancer
    losses = np.array([0.3, 2.0, 7.0])
    used = balancing.batch(losses, norms=np.zeros(T), after=losses)
    # What moves at the end of a batch moves after the weights were taken.
    np.testing.assert_array_equal(used, balancer.last_task_weights)
    assert balancer.last_task_weights.shape == (T,)
    if not case.learns and "random" not in case.id:
        now = keras.ops.convert_to_numpy(balancer.compute_weights(losses))
        np.testing.assert_allclose(now, used, rtol=EXACT)


@one_per_class
def test_eager_equals_graph(case):
    graph = compiled(case).start()
    eager = Balancing(case.balancer())
    given = list(losses_of(T, count=3))
    for one_by_one in (False, True):
        wanted = eager.run(given, one_by_one=one_by_one)
        found = graph.run(given, one_by_one=one_by_one)
        np.testing.assert_allclose(found, wanted, rtol=EXACT)
    assert_same_state(graph, eager)


@every_balancer
def test_functions_are_traced_once(case):
    balancing = after_some_batches(case)
    for function in (balancing.measure, balancing.finish):
        assert function.experimental_get_tracing_count() == 1


def assert_same_state(found, wanted):
    for mine, theirs in zip(
        found.state().values(), wanted.state().values(), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=EXACT, atol=1e-14)


@one_per_class
def test_compiled_by_xla_equals_plain(case):
    xla = compiled(case, xla=True).start()
    plain = compiled(case).start()
    found, wanted = xla.run(losses_of(T)), plain.run(losses_of(T))
    np.testing.assert_allclose(found, wanted, rtol=EXACT)
    assert_same_state(xla, plain)


@chosen(equivariant=True)
def test_relabelling_tasks_relabels_the_weights(case):
    given = list(losses_of(T))
    order = [2, 0, 1]
    relabelled = [tuple(values[order] for values in b) for b in given]
    wanted = compiled(case).start().run(given)
    found = compiled(case).start().run(relabelled)
    np.testing.assert_allclose(found, wanted[:, order], rtol=EXACT)


@one_per_class
@pytest.mark.parametrize("num_tasks", [1, 40])
def test_finite_for_losses_of_every_size(case, num_tasks):
    balancing = Balancing(case.balancer(num_tasks))
    rng = np.random.default_rng(0)
    sizes = np.logspace(-12, 12, 40)
    for step in (0, 39, 20):
        losses = np.roll(sizes, step)[:num_tasks]
        losses = losses * rng.uniform(0.5, 2, num_tasks)
        used = balancing.batch(losses)
        assert np.all(np.isfinite(used))
        assert np.all(used >= 0)
        total = float(balancing.balancer(losses))
        assert np.isfinite(total)
    for path, value in balancing.state().items():
        # Of epochs, of which there was none.
        assert np.all(np.isfinite(value)) or "epoch_losses" in path, path


@chosen(identity=True, for_any_tasks=True)
def test_a_single_task_has_the_weight_1(case):
    balancing = Balancing(case.balancer(num_tasks=1))
    for used in balancing.run(losses_of(1, partly=False)):
        np.testing.assert_allclose(used, 1.0, rtol=1e-15)


@one_per_class
def test_float32_gives_float32(case):
    balancer = case.balancer()
    losses = np.array([0.3, 2.0, 7.0])
    for dtype in ("float32", "float64"):
        given = losses.astype(dtype)
        weights = balancer.compute_weights(given)
        assert keras.backend.standardize_dtype(weights.dtype) == dtype
        assert keras.backend.standardize_dtype(balancer(given).dtype) == dtype
    for given in (losses.astype("float16"), losses.tolist(), [1, 2, 3]):
        weights = balancer.compute_weights(given)
        assert keras.backend.standardize_dtype(weights.dtype) == "float32"
    single = Balancing(case.balancer(), dtype="float32")
    double = compiled(case).start()
    given = list(losses_of(T, count=3))
    found, wanted = single.run(given), double.run(given)
    # Quotients of the losses of two batches have the error of float32.
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@every_balancer
def test_config_round_trip(case):
    balancer = case.balancer()
    stored = keras.saving.serialize_keras_object(balancer)
    again = keras.saving.deserialize_keras_object(stored)
    assert type(again) is type(balancer)
    assert again.get_config() == balancer.get_config()
    assert again.same_rule(balancer)
    assert balancer.same_rule(again)
    assert balancers.get(stored).same_rule(balancer)
    other = type(case.given).from_config(
        {**case.config, "log_task_weights": True}
    )
    assert other.log_task_weights
    assert not other.same_rule(balancer)
    for argument in balancer.get_config():
        assert hasattr(balancer, argument)


@every_balancer
def test_reset_state_starts_again(case):
    start = Balancing(case.balancer()).state()
    balancing = compiled(case).start()
    first = balancing.run(losses_of(T))
    balancing.balancer.reset_state()
    # The names of the variables differ by the number of the object.
    for found, wanted in zip(
        balancing.state().values(), start.values(), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(balancing.run(losses_of(T)), first)


class Holder(keras.Model):
    """A model that does nothing but hold a balancer."""

    def __init__(self, balancer):
        super().__init__()
        self.balancer = balancer
        self.built = True


@every_balancer
def test_saved_state_goes_on(case, tmp_path):
    path = tmp_path / "holder.weights.h5"
    given = list(losses_of(T, count=8))
    balancing = compiled(case).start()
    balancing.run(given[:5])
    Holder(balancing.balancer).save_weights(path)
    wanted = balancing.run(given[5:])
    balancing.start()
    Holder(balancing.balancer).load_weights(path)
    found = balancing.run(given[5:])
    np.testing.assert_array_equal(found, wanted)


# -- tasks without labels -----------------------------------------------------


@every_balancer
def test_what_belongs_to_a_task_without_labels_rests(case):
    balancing = after_some_batches(case)
    # FAMO waits for a full round, which it then ends for all tasks.
    balancing.batch([0.4, 3.0, 6.0])
    before = balancing.state()
    resting = 1
    balancing.batch([0.3, 2.0, 7.0], np.arange(T) != resting)
    for path, value in balancing.state().items():
        # The weights follow the losses of the others.
        if value.shape == (T,) and not path.endswith("/task_weights"):
            assert value[resting] == before[path][resting], path


@every_balancer
def test_a_batch_without_any_label_changes_nothing(case):
    balancing = after_some_batches(case)
    before = balancing.state()
    balancing.batch(np.full(T, 3.0), np.zeros(T, bool))
    for path, value in balancing.state().items():
        if not path.endswith(("/task_weights", "/batches")):
            np.testing.assert_array_equal(value, before[path], err_msg=path)
    assert np.all(np.isfinite(balancing.balancer.last_task_weights))


@every_balancer
def test_weights_by_losses_of_others_are_1_until_all_are_known(case):
    balancing = compiled(case).start()
    for k in range(T - 1):
        used = balancing.batch(np.full(T, 3.0), np.arange(T) == k)
        if case.given.requires_all_losses or "slaw" in case.id:
            assert used[k] == 1.0
    assert np.all(np.isfinite(balancing.batch(np.full(T, 3.0))))


@every_balancer
def test_one_task_at_a_time_sees_the_last_losses_of_the_others(case):
    """As under `strategy="alternating"`: a mixture of new and old losses."""
    balancing = after_some_batches(case)
    balancer = balancing.balancer
    old = keras.ops.convert_to_numpy(balancer.last_losses).copy()
    new = np.array([0.3, 2.0, 7.0])
    for k in range(T):
        weights = balancer.measure(new, np.arange(T) == k)
        mixed = np.where(np.arange(T) <= k, new, old)
        found = keras.ops.convert_to_numpy(balancer.last_losses)
        np.testing.assert_array_equal(found, mixed)
        wanted = balancer.compute_weights(mixed)
        np.testing.assert_allclose(weights, wanted, rtol=EXACT)


# -- losses that must be positive ---------------------------------------------


@every_balancer
def test_negative_losses(case):
    balancing = after_some_batches(case)
    balancer = balancing.balancer
    last = keras.ops.convert_to_numpy(balancer.last_losses).copy()
    losses = np.array([0.3, -9.0, 7.0])
    used = balancing.batch(losses, norms=np.ones(T), after=np.ones(T))
    if not balancer.requires_positive_losses:
        assert np.all(np.isfinite(used))
        balancer.raise_if_negative()
        assert np.isfinite(float(balancer(losses)))
        return
    # Not a number, so that the task is left out as one that is not finite.
    np.testing.assert_array_equal(np.isfinite(used), [True, False, True])
    assert float(balancer.last_losses[1]) == last[1]
    assert np.all(np.isfinite(balancer.last_task_weights))
    name = type(balancer).__name__
    argument = "ideal" if name == "STCH" else "offset"
    message = rf"(?s){name} needs positive.*\['middle'\].*{name}\({argument}="
    with pytest.raises(ValueError, match=message):
        balancer.raise_if_negative()
    balancer.raise_if_negative()  # told once
    for call in (balancer, balancer.compute_weights):
        with pytest.raises(ValueError, match=message + ".*-9.0|-9.0.*"):
            call(losses)


@every_balancer
def test_a_loss_of_0_counts_as_not_measured_where_it_must_be_positive(case):
    balancing = after_some_batches(case)
    balancer = balancing.balancer
    offset = balancer.per_task("offset")
    if "stch" in case.id:
        offset = -balancer.per_task("ideal")
    last = keras.ops.convert_to_numpy(balancer.last_losses).copy()
    losses = np.array([0.3, -offset[1], 7.0])
    used = balancing.batch(losses)
    assert np.all(np.isfinite(used))
    balancer.raise_if_negative()
    found = float(balancer.last_losses[1])
    positive = balancer.requires_positive_losses
    assert found == (last[1] if positive else losses[1])


# -- the unit of a loss -------------------------------------------------------


def direction(case, scale):
    """Direction of weighted gradients, one loss being in another unit."""
    units = np.array([1.0, scale, 1.0])
    gradients = np.random.default_rng(1).normal(size=(T, 6))
    balancing = compiled(case).start()
    given = losses_of(T, partly=False)
    batches = [
        (units * losses, measured, units * norms, units * after)
        for losses, measured, norms, after in given
    ]
    used = balancing.run(batches)[-1]
    vector = (used * units) @ gradients
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("case", BALANCERS, ids=repr)
def test_direction_depends_on_units_only_where_it_may(case):
    plain = direction(case, 1.0)
    cosines = [plain @ direction(case, scale) for scale in (1e-3, 1e3)]
    if case.unit_free == "always":
        assert min(cosines) >= 1 - 1e-10
    else:
        assert min(cosines) < 0.999


@chosen(unit_free="settled")
def test_settled_values_take_units_away(case):
    """Every weighted loss is the same number, so units drop out."""
    config = {**case.config, "optimizer": "sgd", "learning_rate": 0.5}
    balancer = type(case.given).from_config(config)
    balancer.bind(BALANCED)
    balancing = Balancing(balancer, jit_compile=False)
    (learned,) = balancer.trainable_variables
    settled = 1.0 if "imtl" in case.id else 0.5
    for scale in (1.0, 1e-3, 1e3):
        balancing.start()
        losses = np.array([0.3, 2.0 * scale, 7.0])
        # Not from 0: steps of SGD are too short for large losses.
        sign = -1.0 if "imtl" in case.id else 1.0
        learned.assign(sign * np.log(losses) + [0.3, -0.2, 0.1])
        used = balancing.run([(losses,)] * 120)[-1]
        np.testing.assert_allclose(used * losses, settled, rtol=1e-10)
