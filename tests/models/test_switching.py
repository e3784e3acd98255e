"""What `fit(strategy=...)` keeps, changes and refuses."""

import warnings

import keras
import numpy as np
import pytest
from nets import (
    TASKS,
    Subclassed,
    assert_same_bits,
    losses,
    mlp,
    regression_data,
    values,
)

from mtlkeras import optimizers, strategies
from mtlkeras.strategies import (
    Alternating,
    Grouped,
    Joint,
    MultiAdaptive,
    RandomGroups,
)


def compiled(strategy="joint", model=None, optimizer=None, **arguments):
    model = model or mlp()
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        losses(),
        **{"run_eagerly": True, "strategy": strategy, **arguments},
    )
    return model


def fit(model, **arguments):
    """One epoch of one batch."""
    x, y = regression_data(rows=8)
    keras.utils.set_random_seed(1)
    return model.fit(x, y, **{"shuffle": False, "verbose": 0, **arguments})


def state(model):
    return values(model.variables) + values(model.optimizer.variables)


class Witness(keras.callbacks.Callback):
    """Looks at the optimizer when training begins."""

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        clones = getattr(optimizer, "optimizers", [optimizer])
        self.batches = int(optimizer.iterations)
        self.rate = float(optimizer.learning_rate)
        self.counts = [int(clone.iterations) for clone in clones]
        self.weights = values(self.model.weights)
        self.moments = [
            float(np.abs(np.array(v)).max())
            for clone in clones
            for v in clone.variables
            if "momentum" in v.path or "velocity" in v.path
        ]


# -- what stays and what changes -----------------------------------------------


@pytest.mark.parametrize("strategy", ["alternating", "round_robin"])
def test_left_out_keeps_what_is_in_force(strategy):
    model = compiled(strategy)
    in_force, optimizer = model.update_strategy, model.optimizer
    fit(model)
    assert model.update_strategy is in_force
    fit(model, strategy="multi_adaptive")
    in_force = model.update_strategy
    assert in_force == MultiAdaptive()
    optimizer = model.optimizer
    fit(model)
    assert model.update_strategy is in_force
    assert model.optimizer is optimizer


def test_none_is_joint():
    model = compiled("alternating")
    fit(model)
    fit(model, strategy=None)
    assert model.update_strategy == Joint()
    assert compiled(None).update_strategy == Joint()
    assert model.aggregator is None
    assert model.balancer is None


@pytest.mark.parametrize(
    ("first", "same"),
    [
        ("alternating", "alternating"),
        ("alternating", Alternating()),
        (
            Grouped([["left", "right"], ["middle"]]),
            Grouped((("left", "right"), ("middle",))),
        ),
        (
            RandomGroups(2, "epoch", seed=3),
            keras.saving.serialize_keras_object(
                RandomGroups(2, "epoch", seed=3)
            ),
        ),
        ("joint", None),
    ],
    ids=["id", "object", "grouped", "config", "none"],
)
def test_equal_strategy_changes_no_state(first, same):
    told, untold = compiled(first), compiled(first)
    for model in (told, untold):
        fit(model)
    optimizer, in_force = told.optimizer, told.update_strategy
    before = state(told)
    witness = Witness()
    fit(told, strategy=same, callbacks=[witness])
    fit(untold)
    assert told.optimizer is optimizer
    assert told.update_strategy is in_force
    assert witness.batches == 1
    assert any(count > 0 for count in witness.counts)
    assert any((a != b).any() for a, b in zip(before, state(told), strict=True))
    assert_same_bits(state(told), state(untold))


CHANGES = [
    ("joint", "alternating"),
    ("alternating", "joint"),
    ("alternating", Grouped([["left", "right"], ["middle"]])),
    ("alternating", Alternating(task_learning_rates={"left": 0.5})),
    (RandomGroups(2, "step", seed=0), "round_robin"),
    ("multi_adaptive", Alternating(task_slots=False)),
]


@pytest.mark.parametrize(("first", "second"), CHANGES, ids=str)
def test_other_strategy_keeps_weights_rate_and_batches(first, second):
    model = compiled(first)
    fit(model)
    model.optimizer.learning_rate = 0.002
    weights = values(model.weights)
    witness = Witness()
    fit(model, strategy=second, callbacks=[witness])
    assert model.update_strategy == strategies.get(second)
    assert_same_bits(witness.weights, weights)
    assert witness.batches == 1
    assert witness.rate == pytest.approx(0.002, rel=1e-6)
    assert set(witness.counts) == {0}
    assert witness.moments
    assert set(witness.moments) == {0.0}
    assert int(model.optimizer.iterations) == 2
    assert any(
        (a != b).any()
        for a, b in zip(weights, values(model.weights), strict=True)
    )


def test_fresh_slots_step_as_in_a_fresh_model():
    """Emptied moments under an old count would step too far."""
    model = compiled("alternating")
    fit(model, epochs=2)
    fresh = compiled("multi_adaptive")
    fresh.set_weights(model.get_weights())
    fit(fresh)
    fit(model, strategy="multi_adaptive")
    assert_same_bits(values(model.weights), values(fresh.weights))


@pytest.mark.parametrize("second", ["joint", "alternating"])
def test_there_and_back_starts_fresh_slots(second):
    """A strategy that comes back does not find its old slots."""
    first = {"joint": "alternating", "alternating": "joint"}[second]
    model = compiled(first)
    fit(model)
    fit(model, strategy=second)
    witness = Witness()
    fit(model, strategy=first, callbacks=[witness])
    assert witness.batches == 2
    assert set(witness.counts) == {0}
    assert set(witness.moments) == {0.0}


def test_schedule_goes_on():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = compiled("joint", optimizer=keras.optimizers.Adam(decay))
    for batches, strategy in enumerate(("joint", "alternating", "sampled")):
        witness = Witness()
        fit(model, strategy=strategy, callbacks=[witness])
        assert witness.rate == pytest.approx(0.1 * 0.5**batches, rel=1e-6)


def test_change_before_training():
    """Compiled with one strategy, trained from the start with another."""
    model, other = compiled("joint"), compiled("alternating")
    fit(model, strategy="alternating")
    fit(other)
    assert_same_bits(state(model), state(other))


def test_change_in_graph_mode():
    """The traced functions are made anew."""
    model = compiled("joint", run_eagerly=False)
    eager = compiled("joint")
    for strategy in ("joint", "alternating"):
        for each in (model, eager):
            fit(each, strategy=strategy)
        for a, b in zip(model.weights, eager.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# -- the optimizer -------------------------------------------------------------


def test_joint_uses_the_users_own_optimizer():
    optimizer = keras.optimizers.Adam(0.01)
    model = compiled("joint", optimizer=optimizer)
    assert model.optimizer is optimizer
    fit(model)
    fit(model, strategy="joint")
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 2
    # Also when only `fit` says so.
    optimizer = keras.optimizers.Adam(0.01)
    model = compiled("alternating", optimizer=optimizer)
    assert isinstance(model.optimizer, optimizers.PerTaskOptimizer)
    fit(model, strategy="joint")
    assert model.optimizer is optimizer


def test_recompile_with_the_same_optimizer_keeps_its_state():
    """As in Keras, with the user's object and with the container."""
    for strategy in ("joint", "alternating"):
        model, straight = compiled(strategy), compiled(strategy)
        for each in (model, straight):
            fit(each)
        optimizer = model.optimizer
        before = state(model)
        compiled(strategy, model, optimizer)
        assert model.optimizer is optimizer
        assert_same_bits(state(model), before)
        for each in (model, straight):
            fit(each)
        assert_same_bits(state(model), state(straight))


def test_recompile_with_the_template_starts_fresh():
    optimizer = keras.optimizers.Adam(0.01)
    model = compiled("alternating", optimizer=optimizer)
    fit(model)
    weights = values(model.weights)
    compiled("alternating", model, optimizer)
    assert_same_bits(values(model.weights), weights)
    assert int(model.optimizer.iterations) == 0
    assert [int(o.iterations) for o in model.optimizer.optimizers] == [0] * 3
    fit(model)
    assert int(model.optimizer.iterations) == 1


def test_container_under_another_strategy():
    """A recompile with the container and other groups makes other slots."""
    model = compiled("alternating")
    fit(model)
    compiled(Grouped([["left", "right"], ["middle"]]), model, model.optimizer)
    assert len(model.optimizer.optimizers) == 2
    fit(model)


# -- groups --------------------------------------------------------------------

GROUPS = [
    ("joint", (TASKS,)),
    ("alternating", (("left",), ("middle",), ("right",))),
    (Alternating(shuffle=True), (("left",), ("middle",), ("right",))),
    (
        Grouped([["right", "left"], ["middle"]]),
        (("right", "left"), ("middle",)),
    ),
    ("round_robin", (("left",), ("middle",), ("right",))),
    ("sampled", (("left",), ("middle",), ("right",))),
    ("multi_adaptive", (("left",), ("middle",), ("right",))),
]


def test_groups():
    model = mlp()
    for strategy, groups in GROUPS:
        compiled(strategy, model)
        assert model.update_strategy.groups == groups, strategy


@pytest.mark.parametrize("resample", ["never", "epoch", "step"])
def test_random_groups(resample):
    model = compiled(RandomGroups(2, resample, seed=0))
    seen = [model.update_strategy.groups]

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(self.model.update_strategy.groups)

    fit(model, epochs=8, batch_size=4, callbacks=[Look()])
    for groups in seen:
        assert sorted(map(len, groups)) == [1, 2]
        assert sorted(sum(groups, ())) == sorted(TASKS)
    epochs = [tuple(seen[1 + 2 * e : 3 + 2 * e]) for e in range(8)]
    if resample == "never":
        assert len(set(seen)) == 1
    if resample == "epoch":
        assert all(first == second for first, second in epochs)
        assert len(set(epochs)) > 1
    if resample == "step":
        assert any(first != second for first, second in epochs)


def test_a_callback_list_finds_the_next_draw_at_the_end_of_an_epoch():
    """`BackupAndRestore` saves there; and the list stays the user's own."""
    model = compiled(RandomGroups(2, "epoch", seed=0))
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            optimizer = self.model.optimizer
            seen.append((int(optimizer.draw), int(optimizer.iterations)))

    given = keras.callbacks.CallbackList(
        [Look()], add_history=True, model=model
    )
    before = list(given.callbacks)
    x, y = regression_data(rows=8)
    y["left"][:] = np.nan
    for _ in range(2):
        with pytest.warns(UserWarning, match="no batch held a label") as caught:
            model.fit(x, y, batch_size=4, callbacks=given, verbose=0)
        assert [w.category for w in caught].count(UserWarning) == 1
        assert given.callbacks == before
    assert seen == [(2, 2), (4, 4)]
    with pytest.raises(ValueError, match="NaN targets"):
        model.fit(x, {**y, "left": None}, callbacks=given, verbose=0)
    assert given.callbacks == before


def test_groups_of_a_subclass_are_known_after_data():
    model = compiled("alternating", Subclassed())
    with pytest.raises(ValueError, match="in force"):
        _ = model.update_strategy.groups
    fit(model)
    assert model.update_strategy.groups == (("left",), ("middle",), ("right",))


# -- a refused fit -------------------------------------------------------------


def empty():
    x, y = regression_data(rows=8)
    return {"x": x[:0], "y": {name: target[:0] for name, target in y.items()}}


def wrong_keys(**changes):
    _, y = regression_data(rows=8)
    y = {**y, **changes}
    return {
        "y": {name: target for name, target in y.items() if target is not None}
    }


REFUSED = {
    "unknown_id": lambda: {"strategy": "alternatin"},
    "wrong_groups": lambda: {"strategy": Grouped([["left"], ["right"]])},
    "wrong_number": lambda: {"strategy": RandomGroups(4)},
    "wrong_type": lambda: {"strategy": 3},
    "missing_task": lambda: wrong_keys(left=None),
    "unknown_task": lambda: wrong_keys(other=np.ones((8, 1))),
    "empty": empty,
    # A new strategy is already in force when the data are looked at.
    "missing_task_and_strategy": lambda: {
        "strategy": "multi_adaptive",
        **wrong_keys(left=None),
    },
    "empty_and_strategy": lambda: {"strategy": "round_robin", **empty()},
    "wrong_rows_and_strategy": lambda: {
        "strategy": "joint",
        **wrong_keys(left=np.ones((5, 1))),
    },
}


def refused_fit(model, arguments):
    x, y = regression_data(rows=8)
    given = {"x": x, "y": y, "verbose": 0, **arguments}
    with pytest.raises(ValueError, match=".+"):
        model.fit(**given)


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_refused_fit_leaves_the_model_as_it_was(strategy):
    model, straight = compiled(strategy), compiled(strategy)
    for each in (model, straight):
        fit(each)
    before = state(model)
    optimizer, in_force = model.optimizer, model.update_strategy
    for name, refused in REFUSED.items():
        refused_fit(model, refused())
        assert model.update_strategy is in_force, name
        assert model.update_strategy.groups == straight.update_strategy.groups
        assert model.optimizer is optimizer, name
        assert_same_bits(state(model), before)
    for each in (model, straight):
        fit(each)
    assert model.history.history == straight.history.history
    assert_same_bits(state(model), state(straight))


@pytest.mark.parametrize("refused", ["missing_task_and_strategy", "empty"])
def test_refused_fit_in_graph_mode(refused):
    model = compiled("alternating", run_eagerly=False)
    straight = compiled("alternating", run_eagerly=False)
    fit(model)
    refused_fit(model, REFUSED[refused]())
    fit(model)
    for _ in range(2):
        fit(straight)
    assert_same_bits(state(model), state(straight))


@pytest.mark.parametrize("refused", ["missing_task_and_strategy", "empty"])
def test_refused_first_fit_of_a_fresh_model(refused):
    for build in (mlp, Subclassed):
        keras.utils.set_random_seed(0)
        model = compiled("alternating", build())
        keras.utils.set_random_seed(0)
        straight = compiled("alternating", build())
        keras.utils.set_random_seed(5)
        refused_fit(model, REFUSED[refused]())
        assert model.update_strategy == Alternating()
        fit(model)
        keras.utils.set_random_seed(5)
        fit(straight)
        assert len(model.optimizer.optimizers) == 3
        assert int(model.optimizer.iterations) == 1
        if build is mlp:
            assert_same_bits(state(model), state(straight))


REFUSED_BY_COMPILE = {
    "unknown_id": {"strategy": "nothing"},
    "wrong_groups": {"strategy": Grouped([["left"], ["right"]])},
    "wrong_loss": {"loss": {"left": "mse", "other": "mse"}},
    "on_nonfinite": {"on_nonfinite": "ignore"},
    "optimizer": {"optimizer": "ada"},
    # Refused by Keras, after it has replaced the optimizer.
    "metrics": {"metrics": "mae"},
}


@pytest.mark.parametrize("bad", REFUSED_BY_COMPILE)
def test_refused_compile_leaves_the_model_as_it_was(bad):
    model = compiled("alternating")
    optimizer, in_force = model.optimizer, model.update_strategy
    arguments = {"optimizer": "sgd", "loss": losses(), "run_eagerly": True}
    with pytest.raises(ValueError, match=".+"):
        model.compile(**{**arguments, **REFUSED_BY_COMPILE[bad]})
    assert model.update_strategy is in_force
    assert model.optimizer is optimizer
    fit(model)
    assert int(optimizer.iterations) == 1


# -- loss weights that cancel --------------------------------------------------

LOSS_WEIGHTS = {"left": 2.0, "middle": 1.0, "right": 1.0}


@pytest.mark.parametrize("strategy", ["alternating", "multi_adaptive"])
def test_loss_weights_with_adaptive_slots_warn_once(strategy):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = compiled(strategy, loss_weights=LOSS_WEIGHTS)
        fit(model)
        fit(model, strategy="round_robin")
    messages = [str(w.message) for w in caught if "cancel" in str(w.message)]
    assert len(messages) == 1
    assert "task_learning_rates" in messages[0]
    assert "loss_weights" in messages[0]
    assert "Adam" in messages[0]


def test_loss_weights_warn_when_fit_brings_the_slots():
    model = compiled("joint", loss_weights=LOSS_WEIGHTS)
    fit(model)
    with pytest.warns(UserWarning, match="task_learning_rates"):
        fit(model, strategy="alternating")


@pytest.mark.parametrize(
    "arguments",
    [
        {"strategy": "joint", "loss_weights": LOSS_WEIGHTS},
        {"strategy": "alternating"},
        {"strategy": "alternating", "loss_weights": dict.fromkeys(TASKS, 1)},
        {
            "strategy": "alternating",
            "loss_weights": LOSS_WEIGHTS,
            "optimizer": keras.optimizers.SGD,
        },
        {
            "strategy": Alternating(task_slots=False),
            "loss_weights": LOSS_WEIGHTS,
        },
    ],
    ids=["joint", "no_weights", "ones", "sgd", "one_slot"],
)
def test_loss_weights_do_not_warn_where_they_count(arguments):
    arguments = dict(arguments)
    optimizer = arguments.pop("optimizer", keras.optimizers.Adam)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled(optimizer=optimizer(0.01), **arguments)


class FailsIn(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("told to fail")


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_fit_that_fails_later_keeps_what_it_trained(epoch):
    model = compiled("joint")
    fit(model)
    with pytest.raises(RuntimeError, match="told to fail"):
        fit(model, strategy="alternating", epochs=2, callbacks=[FailsIn(epoch)])
    in_force = Alternating if epoch else Joint
    assert isinstance(model.update_strategy, in_force)
    assert int(model.optimizer.iterations) == 1 + epoch
    if epoch:
        assert len(model.optimizer.optimizers) == len(TASKS)
    fit(model)
    assert int(model.optimizer.iterations) == 2 + epoch


def test_data_that_run_out_after_an_epoch_are_keras_s_affair():
    x, y = regression_data(rows=8)
    model = compiled("joint")
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(
            (batch for batch in [(x, y)]),
            strategy="alternating",
            epochs=2,
            steps_per_epoch=1,
            shuffle=False,
            verbose=0,
        )
    assert isinstance(model.update_strategy, Alternating)
    assert int(model.optimizer.iterations) == 1
