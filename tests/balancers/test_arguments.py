"""Arguments that are refused, tasks that do not fit, balancers as objects."""

import keras
import numpy as np
import pytest
from cases import BALANCERS

from mtlkeras import balancers

REFUSED = [
    ("TaskWeights", {"initial_weights": "all"}, r"a number, a list.*'all'"),
    ("TaskWeights", {"initial_weights": [[1.0]]}, r"a dict from task names"),
    ("GeometricMean", {"offset": [1.0, np.inf]}, r"`offset`.*inf"),
    ("LogLoss", {"offset": {"a": "b"}}, r"`offset` must be.*'b'"),
    (
        "UncertaintyWeighting",
        {"classification_tasks": "left"},
        r"list of task names.*'left'",
    ),
    ("IMTLL", {"learning_rate": -1.0}, r"not negative.*learning_rate=-1.0"),
    ("IMTLL", {"optimizer": keras.optimizers.SGD()}, r"id of a Keras.*SGD"),
    ("FAMO", {"decay": -0.1}, r"`decay` must not be negative.*decay=-0.1"),
    ("GradNorm", {"alpha": -1}, r"`alpha` must not be negative.*alpha=-1"),
    ("GradNorm", {"norms_at": "parameters"}, r"'features' or.*'parameters'"),
    (
        "GradNorm",
        {"norms_at": "last_shared_layer", "feature_layers": ["a"]},
        r"goes with norms_at='features'.*\['a'\]",
    ),
    (
        "RandomLossWeighting",
        {"distribution": "uniform"},
        r"'normal' or 'dirichlet'.*'uniform'",
    ),
    ("RandomLossWeighting", {"total": 0.0}, r"positive number.*total=0.0"),
    ("SLAW", {"decay": 1.5}, r"within 0 and 1.*decay=1.5"),
    ("SLAW", {"floor": 0.0}, r"`floor` positive.*floor=0.0"),
    ("STCH", {"mu": 0.0}, r"positive number.*mu=0.0"),
    ("STCH", {"form": "paper"}, r"'linear' or 'log'.*'paper'"),
    ("STCH", {"preference": [1.0, 0.0]}, r"positive numbers.*\[1.0, 0.0\]"),
    ("STCH", {"nadir": 2.0}, r"`nadir` goes with form='log'.*'linear'"),
    ("STCH", {"form": "log", "preference": 1.0}, r"goes with form='linear'"),
    ("STCH", {"form": "log", "nadir": -1.0}, r"`nadir`.*positive.*-1.0"),
    ("STCH", {"form": "log", "warmup": 0}, r"1 or more.*warmup=0"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_message_says_what_must_hold_and_what_came(name, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        getattr(balancers, name)(**arguments)


BY_TASK = [
    lambda values: balancers.TaskWeights(values),
    lambda values: balancers.GeometricMean(values),
    lambda values: balancers.FAMO(offset=values),
    lambda values: balancers.GradNorm(offset=values),
    lambda values: balancers.STCH(ideal=values),
    lambda values: balancers.STCH(form="log", nadir=values),
]


@pytest.mark.parametrize("make", BY_TASK)
def test_arguments_by_task_must_fit_the_tasks(make):
    with pytest.raises(ValueError, match="each of the 3 tasks.*2 numbers"):
        make([1.0, 2.0]).bind(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*names: \['z'\]"):
        make({"a": 1.0, "b": 1.0, "z": 1.0}).bind(["a", "b"])
    with pytest.raises(ValueError, match="needs names: put the"):
        make({"a": 1.0, "b": 1.0})(np.ones(2))
    # What is refused for one model leaves no trace.
    balancer = make([1.0, 2.0])
    with pytest.raises(ValueError, match="each of the 3 tasks"):
        balancer.bind(["a", "b", "c"])
    assert not balancer.variables
    balancer.bind(["x", "y"])
    assert np.isfinite(float(balancer(np.array([3.0, 4.0]))))


def test_names_of_classification_tasks_must_be_tasks():
    balancer = balancers.UncertaintyWeighting(["seg"])
    with pytest.raises(ValueError, match=r"unknown names: \['seg'\]"):
        balancer.bind(["segmentation", "depth"])


def test_some_arguments_need_a_number_for_every_task():
    balancer = balancers.STCH(preference={"a": 1.0})
    with pytest.raises(ValueError, match=r"every task.*none for \['b'\]"):
        balancer.bind(["a", "b"])


ONE_PER_CLASS = [case for case in BALANCERS if case.id in balancers.ids()]
one_per_class = pytest.mark.parametrize("case", ONE_PER_CLASS, ids=repr)


@one_per_class
def test_belongs_to_its_tasks(case):
    balancer = case.balancer(2)
    name = type(balancer).__name__
    balancer.bind(balancer.task_names)
    with pytest.raises(ValueError, match=f"{name} is in use for the tasks"):
        balancer.bind(["other", "names"])
    with pytest.raises(ValueError, match=f"{name} was built for 2 tasks"):
        balancer(np.ones(3))
    with pytest.raises(ValueError, match=r"`\[num_tasks\]`.*\(2, 1\)"):
        balancer(np.ones((2, 1)))


@one_per_class
def test_is_one_of_the_registry(case):
    assert type(balancers.get(case.id)) is type(case.given)
    assert balancers.get(case.given) is case.given
    assert balancers.get(type(case.given)).same_rule(case.given)


def test_other_things_are_no_balancer():
    assert balancers.get(None) is None
    with pytest.raises(ValueError, match="'uncertainty_weighting'"):
        balancers.get("uncertainty")
    with pytest.raises(ValueError, match=r"`mtlkeras.balancers.LossBalancer`"):
        balancers.get(3)


def test_last_task_weights_are_none_before_there_are_tasks():
    assert balancers.get("log_loss").last_task_weights is None


def test_learning_rate_can_be_changed_and_survives_a_reset():
    balancer = balancers.IMTLL(learning_rate=0.5, optimizer="sgd")
    balancer.bind(["a"])
    balancer.optimizer.learning_rate = 0.25
    balancer.measure(np.array([3.0]), np.array([True]))
    balancer.finish_batch(np.array([True]))
    np.testing.assert_allclose(balancer.log_scales, [-0.5])  # 0.25 (1 - 3)
    balancer.reset_state()
    assert float(balancer.optimizer.learning_rate) == 0.25
    assert balancer.get_config()["learning_rate"] == 0.5


@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "ftrl"]
)
def test_any_keras_optimizer_learns(optimizer):
    balancer = balancers.IMTLL(learning_rate=0.01, optimizer=optimizer)
    balancer.bind(["a", "b"])
    start = [np.array(v) for v in balancer.optimizer.variables]
    for _ in range(3):
        balancer.measure(np.array([3.0, 3.0]), np.array([True, True]))
        balancer.finish_batch(np.array([True, False]))
    scales = np.asarray(balancer.log_scales)
    assert scales[0] < 0
    assert scales[1] == 0
    assert not {v.path for v in balancer.trainable_variables} & {
        v.path for v in balancer.non_trainable_variables
    }
    balancer.reset_state()
    for variable, value in zip(
        balancer.optimizer.variables, start, strict=True
    ):
        np.testing.assert_array_equal(variable, value)


class Squares(balancers.LossBalancer):
    """A balancer of a user: `call` is enough."""

    def call(self, task_losses):
        return keras.ops.sum(task_losses**2)


def test_a_balancer_of_ones_own():
    balancer = Squares()
    balancer.bind(["a", "b"])
    used = balancer.measure(np.array([1.0, 3.0]), np.array([True, True]))
    np.testing.assert_array_equal(used, [2.0, 6.0])
    balancer.finish_batch(np.array([True, True]))
    np.testing.assert_array_equal(balancer.last_task_weights, [2.0, 6.0])
