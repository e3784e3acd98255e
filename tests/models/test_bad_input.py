"""Bad input: an error that says what must hold and what came."""

import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS, Subclassed, losses, mlp, regression_data

from mtlkeras import MultiTaskModel, strategies
from mtlkeras.losses import MaskedLoss
from mtlkeras.strategies import (
    Alternating,
    Grouped,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)


def compiled(strategy="joint", model=None, **arguments):
    model = model or mlp()
    model.compile(
        **{
            "optimizer": "adam",
            "loss": losses(),
            "run_eagerly": True,
            "strategy": strategy,
            **arguments,
        }
    )
    return model


def fit(model, x=None, y=None, **arguments):
    if x is None:
        x, data_y = regression_data(rows=8)
        y = data_y if y is None else y
    return model.fit(x, y, **{"verbose": 0, **arguments})


def refuses(call, *parts):
    """A ValueError whose message holds all of the parts."""
    with pytest.raises(ValueError, match=".+") as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, message
    return message


def through_compile(strategy):
    compiled(strategy)


def through_fit(strategy):
    fit(compiled(), strategy=strategy)


def through_fit_of_a_subclass(strategy):
    fit(compiled(strategy, Subclassed()))


WAYS = [through_compile, through_fit]
EVERY_WAY = [*WAYS, through_fit_of_a_subclass]
by_name = {"ids": lambda way: way.__name__}


# -- strategies ----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, **by_name)
def test_unknown_id(way):
    refuses(
        lambda: way("alternatin"),
        "`strategy`",
        "'alternatin'",
        "Did you mean 'alternating'?",
        *strategies.ids(),
    )
    message = refuses(lambda: way("xyzzy"), "'xyzzy'", *strategies.ids())
    assert "Did you mean" not in message


@pytest.mark.parametrize("given", [3, ["alternating"], {"a": 1}, object()])
def test_not_a_strategy(given):
    for way in WAYS:
        with pytest.raises(
            (ValueError, TypeError), match="strategy|class_name"
        ):
            way(given)


def test_id_of_a_strategy_that_needs_arguments():
    for way in WAYS:
        refuses(lambda way=way: way("grouped"), "Grouped(...)", "groups")


@pytest.mark.parametrize("way", WAYS, **by_name)
def test_distribution_strategy(way):
    distribution = tf.distribute.get_strategy()
    refuses(
        lambda: way(distribution),
        "tf.distribute",
        "scope()",
        "mtlkeras.strategies",
        type(distribution).__name__,
    )


@pytest.mark.parametrize("way", EVERY_WAY, **by_name)
@pytest.mark.parametrize(
    ("groups", "wrong"),
    [
        ([["left", "right"], ["middle", "left"]], "named twice ['left']"),
        ([["left", "left"], ["middle", "right"]], "named twice ['left']"),
        ([["left"], ["right"]], "missing tasks ['middle']"),
        ([["left", "depth"], ["middle", "right"]], "unknown tasks ['depth']"),
    ],
    ids=["twice", "twice_in_one", "missing", "unknown"],
)
def test_groups(way, groups, wrong):
    refuses(
        lambda: way(Grouped(groups)),
        "`groups`",
        "exactly once",
        list(TASKS),
        groups,
        wrong,
    )


@pytest.mark.parametrize("groups", [[], [[]], "left", [["left"], []], None])
def test_groups_that_are_none(groups):
    refuses(lambda: Grouped(groups), "`groups`", repr(groups))


@pytest.mark.parametrize("number", [0, -1, 1.5, "2", True])
def test_number_of_groups_below_one(number):
    refuses(
        lambda: RandomGroups(number),
        "`num_groups`",
        "at least 1",
        f"num_groups={number!r}",
    )


@pytest.mark.parametrize("way", EVERY_WAY, **by_name)
@pytest.mark.parametrize("resample", ["never", "step"])
def test_more_groups_than_tasks(way, resample):
    refuses(
        lambda: way(RandomGroups(4, resample)),
        "`num_groups`",
        "3: ['left', 'middle', 'right']",
        "num_groups=4",
    )


def test_resample():
    refuses(
        lambda: RandomGroups(2, "batch"),
        "'never', 'epoch' or 'step'",
        "resample='batch'",
    )


@pytest.mark.parametrize(
    "probabilities",
    [
        {"left": -0.5, "middle": 1.0, "right": 0.5},
        {"left": 0.5, "middle": 0.2, "right": 0.2},
        {"left": 0.5, "middle": 0.5, "right": 0.2},
        {"left": "a", "middle": 0.5, "right": 0.5},
        {"left": float("nan"), "middle": 0.5, "right": 0.5},
        [0.5, 0.2, 0.3],
        {},
    ],
    ids=[
        "negative",
        "too_small",
        "too_large",
        "string",
        "nan",
        "list",
        "empty",
    ],
)
def test_probabilities(probabilities):
    refuses(
        lambda: Sampled(probabilities),
        "`probabilities`",
        "non-negative",
        "sum to 1",
        repr(probabilities),
    )


@pytest.mark.parametrize("way", EVERY_WAY, **by_name)
@pytest.mark.parametrize(
    "probabilities",
    [
        {"left": 0.5, "middle": 0.5},
        {"left": 0.5, "middle": 0.25, "right": 0.125, "depth": 0.125},
    ],
    ids=["missing", "unknown"],
)
def test_probabilities_of_other_tasks(way, probabilities):
    refuses(
        lambda: way(Sampled(probabilities)),
        "`probabilities`",
        list(TASKS),
        probabilities,
    )


WITH_RATES = [
    Alternating,
    lambda **k: Grouped([["left", "middle"], ["right"]], **k),
    lambda **k: RandomGroups(2, **k),
    RoundRobin,
    Sampled,
    MultiAdaptive,
]


@pytest.mark.parametrize("strategy", WITH_RATES)
def test_task_learning_rates(strategy):
    for rates in ({"left": 0.0}, {"left": -1}, {"left": "2"}, [1, 2, 3]):
        refuses(
            lambda rates=rates: strategy(task_learning_rates=rates),
            "`task_learning_rates`",
            "positive",
            repr(rates),
        )
    refuses(
        lambda: through_compile(strategy(task_learning_rates={"depth": 0.5})),
        "`task_learning_rates`",
        list(TASKS),
        "['depth']",
    )


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_task_learning_rates_that_are_not_finite(rate):
    refuses(
        lambda: Alternating(task_learning_rates={"left": rate}),
        "`task_learning_rates`",
        "positive",
    )


@pytest.mark.parametrize(
    "strategy",
    [
        Grouped(
            [["left", "middle"], ["right"]], task_learning_rates={"left": 2}
        ),
        Alternating(task_slots=False, task_learning_rates={"left": 2}),
        RandomGroups(2, "step", task_learning_rates={"left": 2}),
    ],
    ids=["grouped", "one_slot", "resampled"],
)
def test_task_learning_rates_of_tasks_that_share_slots(strategy):
    refuses(
        lambda: through_compile(strategy),
        "share",
        "equal values",
        "'left': 2.0",
        "'middle': 1.0",
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: Alternating(task_slots="no"),
        lambda: Alternating(shuffle=1),
        lambda: Sampled(seed=-1),
        lambda: MultiAdaptive("max"),
        lambda: compiled(on_nonfinite="stop"),
    ],
    ids=["task_slots", "shuffle", "seed", "reduction", "on_nonfinite"],
)
def test_other_arguments(call):
    refuses(call, "must be", "Received")


# -- models --------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned",
    [lambda h: h, lambda h: [h, h], lambda h: (h, h)],
    ids=["tensor", "list", "tuple"],
)
@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
def test_subclass_that_returns_no_dict(returned, method):
    class Net(MultiTaskModel):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1)

        def call(self, x):
            return returned(self.head(x))

    x, y = regression_data(rows=8)
    model = compiled("alternating", Net())
    quiet = {} if method == "train_on_batch" else {"verbose": 0}
    refuses(
        lambda: getattr(model, method)(x, y, **quiet),
        "`call`",
        "must return a dict",
        "Net",
    )


@pytest.mark.parametrize("argument", ["loss", "loss_weights"])
def test_keys_that_are_no_outputs(argument):
    given = {"left": 1.0, "depth": 1.0}
    if argument == "loss":
        given = losses(("left", "depth"))
    refuses(
        lambda: compiled(**{argument: given}),
        f"`{argument}`",
        list(TASKS),
        "['depth']",
    )
    model = compiled("alternating", Subclassed(), **{argument: given})
    refuses(lambda: fit(model), f"`{argument}`", list(TASKS), "['depth']")


def test_list_of_losses_of_another_length():
    refuses(
        lambda: compiled(loss=["mse", "mse"]),
        "`loss`",
        list(TASKS),
        "2 entries",
    )


def test_no_loss():
    refuses(lambda: mlp().compile("adam"), "`loss`", "loss=None")
    refuses(
        lambda: compiled(loss=dict.fromkeys(TASKS)),
        "At least one output",
        "None",
    )


@pytest.mark.parametrize("strategy", ["joint", "alternating", "round_robin"])
def test_targets_that_do_not_fit(strategy):
    x, y = regression_data(rows=8)
    model = compiled(strategy)
    refuses(
        lambda: fit(model, x, {"left": y["left"], "middle": y["middle"]}),
        "`y`",
        list(TASKS),
        "['right']",
        "MaskedLoss",
    )
    refuses(
        lambda: fit(model, x, {**y, "depth": y["left"]}),
        "`y`",
        list(TASKS),
        "['depth']",
    )
    refuses(lambda: fit(model, x, y["left"]), "`y`", list(TASKS))
    weights = {**dict.fromkeys(TASKS, np.ones(8)), "depth": np.ones(8)}
    batches = tf.data.Dataset.from_tensors((x, y, weights))
    refuses(
        lambda: fit(model, batches, shuffle=False),
        "`sample_weight`",
        list(TASKS),
        "['depth']",
    )


def test_optimizer_of_another_model():
    for strategy in ("joint", "alternating"):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        first = compiled(strategy, optimizer=optimizer)
        fit(first)
        refuses(
            lambda o=first.optimizer, s=strategy: compiled(s, optimizer=o),
            "already built for another model",
            "trunk_1/kernel",
            "new optimizer",
        )
        # The model that it belongs to may have it again.
        compiled(strategy, first, optimizer=first.optimizer)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "ScheduleFreeAdamW"),
    reason="This Keras has no ScheduleFreeAdamW.",
)
def test_optimizer_that_overwrites_shared_weights():
    def make():
        return keras.optimizers.ScheduleFreeAdamW(0.01)

    def refused(call):
        refuses(
            call,
            "adds its update to the variable",
            "ScheduleFreeAdamW",
            "3 slots",
            "task_slots=False",
        )

    for strategy in ("alternating", "round_robin", "multi_adaptive"):
        refused(lambda s=strategy: compiled(s, optimizer=make()))
    scaling = keras.optimizers.LossScaleOptimizer
    refused(lambda: compiled("alternating", optimizer=scaling(make())))
    model = compiled(optimizer=make())
    refused(lambda: fit(model, strategy="alternating"))
    # The model stays as it was, and one state for all tasks is fine.
    assert model.update_strategy == strategies.Joint()
    fit(model)
    fit(model, strategy=Alternating(task_slots=False))
    groups = [[*TASKS]]
    compiled(Grouped(groups), optimizer=make())


# Keras warns first, where it cannot know before the epoch.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_empty_data(strategy):
    x, y = regression_data(rows=8)
    model = compiled(strategy)
    nothing = (x[:0], {name: target[:0] for name, target in y.items()})
    # How many batches there are is known of the first and not of the second.
    known = tf.data.Dataset.from_tensor_slices(nothing).batch(4)
    unknown = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .filter(lambda *_: False)
        .batch(4)
    )
    for call in (
        lambda: fit(model, *nothing),
        lambda: fit(model, known, shuffle=False),
        lambda: fit(model, unknown, shuffle=False),
        lambda: fit(model, known, shuffle=False, strategy="multi_adaptive"),
    ):
        refuses(call, "at least one batch", "empty")
    nothing = (batch for batch in ())
    if keras.version() >= "3.15":
        call = functools.partial(fit, model, nothing, shuffle=False)
        refuses(call, "at least one batch", "empty")
    else:  # Keras itself stumbles before it trains.
        with pytest.raises(IndexError):
            fit(model, nothing, shuffle=False)
    assert int(model.optimizer.iterations) == 0
    fit(model)


@pytest.mark.parametrize("reduction", [None, "none"])
def test_loss_without_reduction(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    refuses(
        lambda: compiled(loss={**losses(), "middle": loss}),
        "'middle'",
        "`reduction` must not be `None`",
        "mean_squared_error",
        "sum_over_batch_size",
    )
    refuses(lambda: MaskedLoss(loss), "`reduction` must not be `None`")


def test_loss_that_is_no_scalar():
    class PerRow(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)

    model = compiled("alternating", loss={**losses(), "right": PerRow()})
    refuses(lambda: fit(model), "'right'", "scalar", "(8,)")


@pytest.mark.parametrize("loss", [3, ["mse", "mse", 3]])
def test_not_a_loss(loss):
    refuses(lambda: compiled(loss=loss), "3")


def test_fit_before_compile():
    for model in (mlp(), Subclassed()):
        for call in (
            lambda m=model: fit(m, strategy="alternating"),
            lambda m=model: fit(m),
            lambda m=model: m.train_on_batch(*regression_data(rows=8)),
        ):
            refuses(call, "compile")
        assert not model.compiled
    refuses(
        lambda: fit(mlp(), strategy="alternating"),
        "`fit` needs a compiled model",
        "model.compile(optimizer=..., loss=..., strategy=...)",
    )
    assert mlp().update_strategy is None


def test_unknown_task_name():
    refuses(
        lambda: mlp().task_variables("depth"),
        "`name`",
        list(TASKS),
        "name='depth'",
    )


def test_overridden_total_loss():
    class Total(MultiTaskModel):
        def compute_loss(self, x=None, y=None, y_pred=None, **arguments):
            return keras.ops.mean((y["left"] - y_pred["left"]) ** 2)

    refuses(
        lambda: compiled("alternating", mlp(Total)),
        "Total",
        "`compute_loss`",
        "strategy='joint'",
    )


# -- labels --------------------------------------------------------------------


def without_labels(kind):
    """Data in which `right` has no label at all."""
    x, y = regression_data(rows=8)
    if kind == "nan":
        return x, {**y, "right": np.full_like(y["right"], np.nan)}, {}
    weights = {name: np.ones(8, "float32") for name in TASKS}
    weights["right"] = np.zeros(8, "float32")
    return x, y, {"sample_weight": weights}


@pytest.mark.parametrize("kind", ["nan", "weights"])
@pytest.mark.parametrize("strategy", ["joint", "alternating", "multi_adaptive"])
def test_task_without_labels_for_an_epoch(strategy, kind):
    x, y, arguments = without_labels(kind)
    model = compiled(strategy)
    with pytest.warns(UserWarning, match="no batch held a label") as caught:
        history = fit(model, x, y, batch_size=4, **arguments).history
    messages = [str(w.message) for w in caught if "label" in str(w.message)]
    assert len(messages) == 1
    assert "['right']" in messages[0]
    assert "Epoch 1" in messages[0]
    assert np.isnan(history["right_loss"]).all()
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(history["left_loss"]).all()


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_labels_in_one_batch_are_enough(strategy):
    x, y, _ = without_labels("nan")
    y["right"][-1] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = fit(
            compiled(strategy), x, y, batch_size=4, shuffle=False
        ).history
    assert np.isfinite(history["right_loss"]).all()


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_loss_that_is_not_finite(strategy):
    """Skipped with one warning per epoch, or raised after the batch."""
    x, y = regression_data(rows=8)
    y["middle"][0] = np.inf
    with pytest.warns(UserWarning, match="not finite") as caught:
        fit(compiled(strategy), x, y, batch_size=4, shuffle=False)
    messages = [str(w.message) for w in caught if "finite" in str(w.message)]
    assert len(messages) == 1
    assert "'middle' (1 times)" in messages[0]
    model = compiled(strategy, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match="middle"):
        fit(model, x, y, batch_size=4, shuffle=False)
    with pytest.raises(FloatingPointError, match="middle"):
        model.train_on_batch(x, y)
