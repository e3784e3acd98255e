"""Which hyperparameters there are, and that every combination is valid."""

import keras
import keras_tuner
import numpy as np
import pytest
from nets import TASKS, Subclassed, losses, mlp, regression_data, values
from tuning import build

from mtlkeras import aggregators, balancers, strategies
from mtlkeras.tuner import MultiTaskHyperModel
from mtlkeras.tuner.search_spaces import search_spaces

# A balancer under `alternating` with Adam: valid, if of little use.
CANCELS = "ignore:With optimizer slots per task:UserWarning"


def build_three(hp):
    model = mlp()
    model.compile("adam", loss=losses())
    return model


def names_of(hp):
    return [space.name for space in hp.space]


def draw(hypermodel, seed):
    """A model for random hyperparameters, as an oracle draws them."""
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    drawn = keras_tuner.HyperParameters()
    for number, space in enumerate(hp.space):
        drawn.merge([space])
        if drawn.is_active(space):
            drawn.values[space.name] = space.random_sample(97 * seed + number)
    return drawn, hypermodel.build(drawn)


@pytest.mark.parametrize("tasks", [("a", "b"), tuple("abcdef")])
def test_spaces_are_arguments_whose_ranges_hold_the_defaults(tasks):
    for cls, space in search_spaces(tasks).items():
        defaults = cls().get_config() if cls is not None else {}
        for argument, choices in space.items():
            default = defaults[argument]
            if isinstance(choices, list):
                assert default in choices, (cls, argument)
            elif isinstance(choices, dict):
                assert list(choices) == list(tasks)
                cls(**{argument: dict.fromkeys(tasks, 1.0)})
            else:
                low, high = choices[:2]
                assert low <= default <= high, (cls, argument)
                cls(**{argument: low}), cls(**{argument: high})


@pytest.mark.parametrize("folder", [aggregators, balancers])
def test_every_method_can_be_searched(folder):
    argument = folder.__name__.rpartition(".")[2]
    given = {argument: folder.ids()}
    hypermodel = MultiTaskHyperModel(build_three, strategies=["joint"], **given)
    found = set()
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    kind = argument[:-1]
    for id in folder.ids():
        hp.values[kind] = id
        hp.ensure_active_values()
        model = hypermodel.build(hp)
        rule = getattr(model, kind)
        assert type(rule) is type(folder.get(id))
        found.add(type(rule))
        config = rule.get_config()
        for name, value in hp.values.items():
            if name.startswith(f"{id}/"):
                key, *rest = name.split("/")[1:]
                chosen = config[key][rest[0]] if rest else config[key]
                assert chosen == (None if value == "none" else value)
    assert len(found) == len(folder.ids())


@pytest.mark.filterwarnings(CANCELS)
def test_only_valid_combinations_come_up():
    ids = [id for id in strategies.ids() if id != "grouped"]
    hypermodel = MultiTaskHyperModel(
        build_three,
        strategies=[*ids, strategies.Grouped([["left", "right"], ["middle"]])],
        aggregators=[None, "pcgrad"],
        balancers=[None, "slaw"],
        task_learning_rates=(0.1, 10.0),
    )
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    (condition,) = next(
        space for space in hp.space if space.name == "aggregator"
    ).conditions
    assert set(condition.values) == {"grouped", "joint", "random_groups"}
    (condition,) = next(
        space
        for space in hp.space
        if space.name == "task_learning_rates/middle"
    ).conditions
    alone = {"alternating", "multi_adaptive", "round_robin", "sampled"}
    assert set(condition.values) == alone
    seen = set()
    for id in hypermodel.update_space.strategies:
        hp.values.update(strategy=id, aggregator="pcgrad", balancer="slaw")
        hp.ensure_active_values()
        model = hypermodel.build(hp)
        assert (model.aggregator is None) == ("aggregator" not in hp.values)
        assert model.balancer is not None
        factors = model.update_strategy.task_learning_rates
        assert (factors is not None) == (id in alone)
        seen.add(type(model.update_strategy))
    assert len(seen) == len(strategies.ids())


@pytest.mark.filterwarnings(CANCELS)
def test_what_is_drawn_is_in_force_and_trains():
    x, y = regression_data()
    hypermodel = MultiTaskHyperModel(
        lambda hp: build(hp, tasks=TASKS),
        strategies=["joint", "alternating"],
        aggregators=["cagrad", "mgda"],
        balancers=[None, "task_weights"],
        learning_rate=(1e-4, 1e-1),
        task_learning_rates={"left": (0.5, 2.0)},
    )
    drawn = set()
    for seed in range(3):
        hp, model = draw(hypermodel, seed)
        drawn.add((hp.values["strategy"], hp.values.get("aggregator")))
        rate = hp.values["learning_rate"]
        assert float(model.optimizer.learning_rate) == pytest.approx(rate)
        model.train_on_batch(x, y)
        assert float(model.optimizer.learning_rate) == pytest.approx(rate)
        if hp.values["strategy"] == "alternating":
            factors = model.update_strategy.task_learning_rates
            found = hp.values["task_learning_rates/left"]
            assert factors == {"left": found}
    assert len(drawn) > 1


@pytest.mark.filterwarnings(CANCELS)
def test_the_model_is_that_of_compile():
    """The same weights after training as with `compile(strategy=...)`."""
    x, y = regression_data(("left", "right"))
    results = []
    for given in ("hyperparameter", "compile"):
        arguments = {}
        if given == "compile":
            arguments = {"strategy": "alternating", "balancer": "slaw"}
        keras.utils.set_random_seed(1)
        hp = keras_tuner.HyperParameters()
        model = build(hp, **arguments)
        if given == "hyperparameter":
            hypermodel = MultiTaskHyperModel(
                lambda hp, model=model: model,
                strategies=["alternating"],
                balancers=["slaw"],
            )
            hypermodel.fit(hp, hypermodel.build(hp), x, y, verbose=0)
        else:
            model.fit(x, y, verbose=0)
        results.append(values(model.weights))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


class Halved(aggregators.Mean):
    """An aggregator of the user's own."""

    def __init__(self, share=0.5, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def compute_weights(self, gramian, task_losses=None, live=None):
        return self.share * super().compute_weights(gramian, task_losses, live)

    def get_config(self):
        return {**super().get_config(), "share": self.share}


def test_objects_and_classes_of_the_users_own():
    given = aggregators.CAGrad(c=0.25)
    hypermodel = MultiTaskHyperModel(
        build,
        strategies=["joint"],
        aggregators={"weak": Halved, "strong": Halved(0.9), "fixed": given},
        search_spaces={Halved: {"share": (0.1, 0.4)}},
    )
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    assert "weak/share" in names_of(hp)
    assert not any(name.startswith("fixed/") for name in names_of(hp))
    hp.values.update({"aggregator": "weak", "weak/share": 0.3})
    assert hypermodel.build(hp).aggregator.share == 0.3
    hp.values["aggregator"] = "strong"
    rule = hypermodel.build(hp).aggregator
    assert type(rule) is Halved
    assert rule.share == 0.9
    hp.values["aggregator"] = "fixed"
    first, second = (hypermodel.build(hp).aggregator for _ in range(2))
    assert first.c == 0.25
    assert given is not first is not second


def test_an_empty_search_space_leaves_the_defaults():
    hypermodel = MultiTaskHyperModel(
        build,
        strategies=["joint"],
        aggregators=["cagrad"],
        search_spaces={"cagrad": {}},
    )
    hp = keras_tuner.HyperParameters()
    assert hypermodel.build(hp).aggregator.c == 0.5
    assert names_of(hp) == ["fast", "strategy", "aggregator"]


def test_strategies_that_draw_are_the_same_when_built_again():
    hypermodel = MultiTaskHyperModel(
        build_three, strategies=["random_groups"], seed=3
    )
    hp = keras_tuner.HyperParameters()
    groups = [hypermodel.build(hp).update_strategy.groups for _ in range(2)]
    assert groups[0] == groups[1]
    expected = strategies.RandomGroups(2, seed=3).task_groups(TASKS)
    assert groups[0] == expected


def test_the_learning_rate_begins_with_that_of_compile():
    hypermodel = MultiTaskHyperModel(build, learning_rate=(1e-4, 1e-1))
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    assert hp.values["learning_rate"] == pytest.approx(0.01)


def test_uncompiled_and_subclassed_models():
    optimizer = keras.optimizers.Adam(0.01)
    hypermodel = MultiTaskHyperModel(
        lambda hp: Subclassed(),
        strategies=["joint", "random_groups"],
        aggregators=["pcgrad"],
        compile_arguments={"optimizer": optimizer, "loss": losses()},
    )
    x, y = regression_data()
    for _ in range(2):  # with an optimizer each
        hp = keras_tuner.HyperParameters()
        model = hypermodel.build(hp)
        hypermodel.fit(hp, model, x, y, verbose=0)
        assert type(model.aggregator) is aggregators.PCGrad
        assert int(model.optimizer.iterations) == 2
    assert not optimizer.built


def test_a_hypermodel_can_be_wrapped():
    class Own(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, *args, **kwargs):
            return model.fit(*args, batch_size=hp.Int("rows", 8, 9), **kwargs)

    hypermodel = MultiTaskHyperModel(Own(), ["alternating"])
    hp = keras_tuner.HyperParameters()
    model = hypermodel.build(hp)
    x, y = regression_data(("left", "right"), rows=16)
    hypermodel.fit(hp, model, x, y, verbose=0)
    assert int(model.optimizer.iterations) == 2
    assert "rows" in hp.values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": "joint"}, "must be a list"),
        ({"strategies": []}, "must be a list"),
        ({"strategies": ["jiont"]}, "Did you mean 'joint'"),
        ({"strategies": ["grouped"]}, "needs arguments"),
        ({"strategies": ["joint", None]}, "'joint' comes twice"),
        ({"aggregators": ["mgda", "mgda"]}, "'mgda' comes twice"),
        ({"search_spaces": {"mgda": {}}}, "`strategies`, `aggregators` or"),
        ({"groups": {"left": ["left_mae"]}}, "say how to use `baselines`"),
        ({"baselines": 0.5}, "must be 'train' or a dict"),
        ({"baselines": {"left_mae": 0.0}}, "finite and not 0"),
        ({"baselines": {"left_iou": 0.5}}, "higher 'left_iou' is better"),
        ({"baselines": "train", "baseline_epochs": 0}, "positive integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskHyperModel(build, **arguments)
    with pytest.raises(ValueError, match="Argument `build` must be"):
        MultiTaskHyperModel(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategies": ["alternating"], "aggregators": ["mgda"]},
            "no strategy here updates together",
        ),
        (
            {"strategies": ["joint"], "task_learning_rates": (0.1, 1.0)},
            "optimizer slots of its own",
        ),
        ({"task_learning_rates": {"up": (0.1, 1.0)}}, "must name tasks"),
        (
            {"baselines": {"up_mae": 0.5}, "strategies": ["joint"]},
            r"'up_mae'\], which name none",
        ),
        (
            {"aggregators": ["cagrad"], "search_spaces": {"cagrad": {"c": 3}}},
            "search space of 'cagrad/c' must be",
        ),
        ({"learning_rate": (0.0, 1.0)}, "positive for 'log'"),
    ],
)
def test_what_does_not_fit_the_model(arguments, message):
    hypermodel = MultiTaskHyperModel(build, **arguments)
    with pytest.raises(ValueError, match=message):
        hypermodel.build(keras_tuner.HyperParameters())


def test_bad_builds():
    hp = keras_tuner.HyperParameters
    hypermodel = MultiTaskHyperModel(lambda hp: keras.Sequential())
    with pytest.raises(ValueError, match="from_model"):
        hypermodel.build(hp())
    hypermodel = MultiTaskHyperModel(lambda hp: mlp())
    with pytest.raises(ValueError, match="pass `compile_arguments="):
        hypermodel.build(hp())

    def with_schedule(hp):
        model = mlp()
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        model.compile(keras.optimizers.SGD(schedule), loss=losses())
        return model

    hypermodel = MultiTaskHyperModel(with_schedule, learning_rate=(0.1, 1.0))
    with pytest.raises(ValueError, match="learning rate is a schedule"):
        hypermodel.build(hp())

    def with_strategy(hp):
        hp.Choice("strategy", ["mine", "yours"])
        return build(hp)

    with pytest.raises(ValueError, match="Received: 'mine'"):
        MultiTaskHyperModel(with_strategy).build(hp())
    with pytest.raises(ValueError, match="compares with single-task"):
        MultiTaskHyperModel(build).objective  # noqa: B018
