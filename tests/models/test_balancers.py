"""Balancers in training: what the trainer makes of their weights."""

import keras
import nets
import numpy as np
import pytest
import tensorflow as tf
from cases import STRATEGIES
from nets import TASKS

import mtlkeras
from mtlkeras import aggregators, balancers, strategies

WEIGHTS = {"left": 0.5, "middle": 2.0, "right": 1.0}
SGD = keras.optimizers.SGD
# One strategy for each kind of training step.
KINDS = [
    case
    for case in STRATEGIES
    if case.id
    in (
        "joint",
        "alternating",
        "alternating_shuffled",
        "grouped",
        "random_groups_step",
        "multi_adaptive",
        "affinity_groups",
    )
]


def model_with(strategy="joint", balancer=None, rate=0.05, **kwargs):
    model = nets.mlp()
    model.compile(
        SGD(rate),
        kwargs.pop("loss", nets.losses()),
        strategy=strategy,
        balancer=balancer,
        **kwargs,
    )
    return model


def train(model, epochs=2, **kwargs):
    x, y = nets.regression_data()
    return model.fit(
        x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **kwargs
    )


class AlwaysNegative(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean(y_pred - y_true - 100.0, -1)


# -- the weights --------------------------------------------------------------


@pytest.mark.parametrize("case", STRATEGIES, ids=repr)
def test_constant_task_weights_are_loss_weights(case):
    ours = model_with(case.strategy(), balancers.TaskWeights(WEIGHTS))
    other = model_with(case.strategy(), loss_weights=WEIGHTS)
    train(ours, 1)
    train(other, 1)
    nets.assert_same_bits(nets.values(ours.weights), nets.values(other.weights))


def reference_loop(balancer_total, visits, rate=0.05, epochs=2):
    """Plain SGD on a stock model, weighed by hand.

    Args:
        balancer_total: Function from the list of losses to their total.
        visits: List of groups of tasks, in the order of the sub-steps.
    """
    model = nets.mlp(keras.Model)
    x, y = nets.regression_data()
    last = {}
    for _ in range(epochs):
        for start in range(0, len(x), 16):
            rows = slice(start, start + 16)
            for group in visits:
                with tf.GradientTape() as tape:
                    outputs = model(x[rows], training=True)
                    losses = {
                        n: tf.reduce_mean((outputs[n] - y[n][rows]) ** 2)
                        for n in group
                    }
                    last.update({n: float(v) for n, v in losses.items()})
                    weights = dict.fromkeys(TASKS, 1.0)
                    if len(last) == len(TASKS):
                        point = tf.constant([last[n] for n in TASKS])
                        with tf.GradientTape() as inner:
                            inner.watch(point)
                            total = balancer_total(point)
                        found = inner.gradient(total, point).numpy()
                        weights = dict(zip(TASKS, found, strict=True))
                    loss = sum(weights[n] * v for n, v in losses.items())
                variables = [v.value for v in model.trainable_variables]
                gradients = tape.gradient(loss, variables)
                for v, g in zip(variables, gradients, strict=True):
                    if g is not None:
                        v.assign_sub(rate * g)
    return nets.values(model.weights)


@pytest.mark.parametrize(
    ("strategy", "visits"),
    [
        ("joint", [TASKS]),
        ("alternating", [(n,) for n in TASKS]),
        (
            strategies.Grouped([["right"], ["left", "middle"]]),
            [("right",), ("left", "middle")],
        ),
    ],
)
def test_sub_steps_use_the_last_measured_loss_of_every_task(strategy, visits):
    expected = reference_loop(
        lambda losses: tf.exp(tf.reduce_mean(tf.math.log(losses))), visits
    )
    model = model_with(strategy, "geometric_mean")
    train(model)
    for a, b in zip(nets.values(model.weights), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_heads_and_rule_see_weighted_losses_under_an_aggregator():
    rule = aggregators.UPGrad
    ours = model_with(
        "joint", balancers.TaskWeights(WEIGHTS), aggregator=rule()
    )
    other = model_with("joint", loss_weights=WEIGHTS, aggregator=rule())
    train(ours, 1)
    train(other, 1)
    nets.assert_same_bits(nets.values(ours.weights), nets.values(other.weights))


def test_weights_come_after_loss_weights():
    model = model_with("joint", "geometric_mean", loss_weights=WEIGHTS)
    history = train(model, 1).history
    last = dict(zip(TASKS, np.array(model.balancer.last_losses), strict=True))
    mean = np.exp(np.mean(np.log(list(last.values()))))
    np.testing.assert_allclose(
        model.balancer.last_task_weights, [mean / 3 / last[n] for n in TASKS]
    )
    # What is reported stays the sum by `loss_weights`.
    total = sum(WEIGHTS[n] * history[f"{n}_loss"][0] for n in TASKS)
    assert history["loss"][0] == pytest.approx(total, rel=1e-6)


def test_a_task_without_labels_keeps_its_last_loss_and_rests():
    model = model_with("alternating", "uncertainty_weighting")
    x, y = nets.regression_data(rows=16)
    model.train_on_batch(x, y)
    balancer = model.balancer
    loss = np.array(balancer.last_losses)
    learned = np.array(balancer.trainable_variables[0])
    y["middle"] = np.full_like(y["middle"], np.nan)
    model.train_on_batch(x, y)
    now = np.array(balancer.last_losses)
    assert now[1] == loss[1]
    assert now[0] != loss[0]
    moved = np.array(balancer.trainable_variables[0])
    assert moved[1] == learned[1]
    assert moved[0] != learned[0]


def test_a_loss_that_is_not_finite_is_no_measured_loss():
    model = model_with("alternating", "geometric_mean")
    x, y = nets.regression_data(rows=16)
    model.train_on_batch(x, y)
    before = np.array(model.balancer.last_losses)
    y["left"][0] = np.inf
    with pytest.warns(UserWarning, match="not finite"):
        model.fit(x, y, batch_size=16, verbose=0)
    after = np.array(model.balancer.last_losses)
    assert after[0] == before[0]
    assert np.all(np.isfinite(after))
    assert all(np.all(np.isfinite(v)) for v in nets.values(model.weights))


@pytest.mark.parametrize("case", KINDS, ids=repr)
def test_a_negative_loss_is_an_error_and_changes_nothing(case):
    loss = dict.fromkeys(TASKS, AlwaysNegative())
    model = model_with(case.strategy(), "geometric_mean", loss=loss)
    before = nets.values(model.weights)
    with pytest.raises(ValueError, match="'left'.*offset=") as error:
        train(model, 1)
    assert "GeometricMean" in str(error.value)
    nets.assert_same_bits(nets.values(model.weights), before)
    # The same tasks with an offset train.
    model = model_with(
        case.strategy(), balancers.GeometricMean(offset=1e3), loss=loss
    )
    train(model, 1)
    assert not np.array_equal(nets.values(model.weights)[0], before[0])


# -- what a balancer asks for -------------------------------------------------


class LengthsSeen(balancers.LossBalancer):
    """Weighs by constants and keeps the lengths that it was told."""

    requires_gradient_norms = True
    norms_at, feature_layers = "features", None

    def build_state(self, num_tasks):
        self.norms = self.add_state("norms", (num_tasks,))

    def call(self, task_losses):
        return keras.ops.sum(2.0 * task_losses)

    def note_gradient_norms(self, norms, measured):
        self.norms.assign(keras.ops.where(measured, norms, self.norms))


class LengthsAtLastLayer(LengthsSeen):
    norms_at = "last_shared_layer"


def lengths_by_hand(model, x, y, at):
    """Gradient lengths of every task, by plain gradient tapes."""
    trunk = model.get_layer("trunk_2")
    until_trunk = keras.Model(model.input, trunk.output)
    found = []
    for name in TASKS:
        with tf.GradientTape() as tape:
            features = until_trunk(x)
            tape.watch(features)
            output = model.get_layer(f"head_{name}")(features)
            loss = WEIGHTS[name] * tf.reduce_mean((output - y[name]) ** 2)
        sources = [features]
        if at == "last_shared_layer":
            sources = [v.value for v in trunk.trainable_variables]
        gradients = tape.gradient(loss, sources)
        found.append(float(tf.linalg.global_norm(gradients)))
    return found


@pytest.mark.parametrize("case", KINDS, ids=repr)
@pytest.mark.parametrize("kind", [LengthsSeen, LengthsAtLastLayer])
def test_gradient_norms_are_those_of_the_tasks(case, kind):
    chosen_in_graph = case.id in (
        "alternating_shuffled",
        "random_groups_step",
        "affinity_groups",
    )
    model = model_with(case.strategy(), kind(), 1e-9, loss_weights=WEIGHTS)
    x, y = nets.regression_data(rows=16)
    expected = lengths_by_hand(model, x, y, kind.norms_at)
    if chosen_in_graph and kind is LengthsAtLastLayer:
        with pytest.raises(ValueError, match="norms_at='features'"):
            model.train_on_batch(x, y)
        return
    model.train_on_batch(x, y)
    np.testing.assert_allclose(model.balancer.norms, expected, rtol=1e-4)


@pytest.mark.parametrize("gradients_at", ["parameters", "features"])
@pytest.mark.parametrize("kind", [LengthsSeen, LengthsAtLastLayer])
def test_gradient_norms_under_an_aggregator(gradients_at, kind):
    rule = aggregators.Mean(gradients_at=gradients_at)
    model = model_with(
        "joint", kind(), 1e-9, aggregator=rule, loss_weights=WEIGHTS
    )
    x, y = nets.regression_data(rows=16)
    expected = lengths_by_hand(model, x, y, kind.norms_at)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(model.balancer.norms, expected, rtol=1e-4)


def test_gradient_norms_of_a_subclassed_model_need_layers():
    model = nets.Subclassed()
    x, y = nets.regression_data(rows=16)
    model.compile(SGD(1e-9), nets.losses(), balancer=LengthsSeen())
    with pytest.raises(ValueError, match="feature_layers"):
        model.train_on_batch(x, y)
    norms = []
    for kind in (LengthsSeen, LengthsAtLastLayer):
        balancer = kind()
        balancer.feature_layers = [model.trunk_2.name]
        model.compile(SGD(1e-9), nets.losses(), balancer=balancer)
        model.train_on_batch(x, y)
        norms.append(np.array(balancer.norms))
        assert np.all(norms[-1] > 0)
    assert not np.allclose(*norms)


class LossesAfter(balancers.LossBalancer):
    """Keeps the losses after the updates."""

    update_after_step = True

    def build_state(self, num_tasks):
        self.after = self.add_state("after", (num_tasks,))

    def call(self, task_losses):
        return keras.ops.sum(task_losses)

    def update_after(self, task_losses, trained):
        self.after.assign(keras.ops.cast(task_losses, "float64"))


@pytest.mark.parametrize("strategy", ["joint", "alternating", "sampled"])
def test_losses_after_the_step_are_those_of_the_same_batch(strategy):
    model = model_with(strategy, LossesAfter())
    x, y = nets.regression_data(rows=16)
    model.train_on_batch(x, y)
    expected = [
        float(np.mean((model.predict(x, verbose=0)[n] - y[n]) ** 2))
        for n in TASKS
    ]
    np.testing.assert_allclose(model.balancer.after, expected, rtol=1e-5)


# -- Keras around it ----------------------------------------------------------


def test_history_keys_stay_and_weights_are_logged_on_request():
    quiet = train(model_with("joint", "uncertainty_weighting"), 1).history
    assert set(quiet) == set(train(model_with(), 1).history)
    model = model_with(
        "joint", balancers.UncertaintyWeighting(log_task_weights=True)
    )
    logged = train(model, 2).history
    keys = {f"task_weight/{n}" for n in TASKS}
    assert set(logged) - set(quiet) == keys
    np.testing.assert_allclose(
        [logged[f"task_weight/{n}"][-1] for n in TASKS],
        model.balancer.last_task_weights,
    )


def test_weights_may_change_while_fit_runs_without_a_new_trace():
    traces = []

    class CountingLoss(keras.losses.Loss):
        def call(self, y_true, y_pred):
            traces.append(1)
            return keras.ops.mean((y_pred - y_true) ** 2, -1)

    loss = {**nets.losses(), "left": CountingLoss()}
    model = model_with("alternating", "task_weights", loss=loss)
    train(model, 1)
    before = len(traces)
    changing = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: model.balancer.assign(
            {"left": float(batch)}
        )
    )
    train(model, 1, callbacks=[changing])
    assert len(traces) == before
    np.testing.assert_array_equal(
        model.balancer.last_task_weights, [2.0, 1.0, 1.0]
    )
    with pytest.raises(ValueError, match="unknown"):
        model.balancer.assign({"lft": 1.0})


def test_an_equal_balancer_keeps_its_state_and_another_starts_anew():
    model = model_with("joint", "uncertainty_weighting")
    train(model, 1)
    in_force = model.balancer
    train(model, 1, balancer="uncertainty_weighting")
    assert model.balancer is in_force
    train(model, 1, strategy="alternating")
    assert model.balancer is in_force
    train(model, 1, balancer=balancers.UncertaintyWeighting(learning_rate=0.5))
    assert model.balancer is not in_force
    train(model, 1, balancer=None)
    assert model.balancer is None


@pytest.mark.parametrize("strategy", ["joint", "alternating", "sampled"])
def test_a_saved_model_goes_on_with_the_same_bits(strategy, tmp_path):
    def new():
        return model_with(
            strategy, balancers.UncertaintyWeighting(learning_rate=0.1)
        )

    whole, first = new(), new()
    train(whole, 4)
    train(first, 2)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        second.balancer.last_losses, first.balancer.last_losses
    )
    train(second, 2)
    nets.assert_same_bits(
        nets.values(whole.weights + whole.balancer.variables),
        nets.values(second.weights + second.balancer.variables),
    )


def test_learned_variables_are_not_the_models():
    model = model_with("joint", "uncertainty_weighting", aggregator="mgda")
    learned = {id(v) for v in model.balancer.trainable_variables}
    assert learned
    assert not learned & {id(v) for v in model.trainable_variables}
    assert not learned & {id(v) for v in model.shared_variables}


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_same_training_with_xla_and_eagerly(strategy):
    results = []
    for options in ({}, {"jit_compile": True}, {"run_eagerly": True}):
        model = model_with(strategy, "geometric_mean", **options)
        train(model, 1)
        results.append(nets.values(model.weights))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_balancer_needs_the_loss_of_each_task():
    class OwnTotal(nets.Subclassed):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(ValueError, match="compute_loss.*balancer=FAMO"):
        OwnTotal().compile("sgd", nets.losses(), balancer="famo")


def test_arguments_by_task_are_checked_at_the_door():
    model = nets.mlp()
    with pytest.raises(ValueError, match="unknown"):
        model.compile(
            "sgd", nets.losses(), balancer=balancers.TaskWeights({"lft": 1.0})
        )
    with pytest.raises(ValueError, match="Did you mean 'famo'"):
        model.compile("sgd", nets.losses(), balancer="fammo")


def test_adaptive_slots_cancel_weights_and_a_warning_says_so():
    model = nets.mlp()
    with pytest.warns(UserWarning, match="the weights of FAMO"):
        model.compile(
            "adam", nets.losses(), strategy="alternating", balancer="famo"
        )


def test_one_task_trains_under_every_balancer():
    x, y = nets.regression_data(("only",), rows=16)
    for id in balancers.ids():
        model = nets.mlp(tasks=("only",))
        model.compile(SGD(0.05), {"only": "mse"}, balancer=id)
        model.fit(x, y, batch_size=8, verbose=0)
        assert np.all(np.isfinite(nets.values(model.weights)[0])), id
    assert isinstance(model, mtlkeras.MultiTaskModel)
