"""Rules that hold for every strategy, against stock optimizers and NumPy.

One run in graph mode for each strategy, on data where rows, whole tasks and
members of groups are without labels; the tests look at what it left behind.
"""

import dataclasses

import keras
import nets
import numpy as np
import pytest
from cases import STRATEGIES, SUB_STEPPED, Case
from reference import Reference

BATCHES, BATCH_SIZE, EPOCHS = 4, 8, 2
every_strategy = pytest.mark.parametrize("case", STRATEGIES, ids=repr)
every_sub_stepped = pytest.mark.parametrize("case", SUB_STEPPED, ids=repr)


def partly_labelled(seed=0):
    """Four batches; in the last two the first and the second task rest."""
    x, y = nets.regression_data(rows=BATCHES * BATCH_SIZE, seed=seed)
    y["left"][:3] = np.nan
    y["right"][9:13] = np.nan
    y["left"][16:24] = np.nan
    y["middle"][24:32] = np.nan
    return x, y


def adam():
    return keras.optimizers.Adam(0.01, epsilon=1e-4)


@dataclasses.dataclass
class Run:
    case: Case
    model: keras.Model
    logs: dict
    reference: Reference
    expected_logs: dict


@pytest.fixture(scope="module", params=STRATEGIES, ids=repr)
def done(request):
    """A case and its reference, trained once on the same data."""
    return run(request.param, *partly_labelled())


def run(case, x, y):
    validation = partly_labelled(seed=1)
    model = nets.mlp()
    model.compile(
        adam(),
        loss=nets.losses(),
        metrics={name: ["mae"] for name in nets.TASKS},
        strategy=case.strategy(),
    )
    reference = Reference(case, nets.mlp(keras.Model), adam)
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        validation_batch_size=BATCH_SIZE,
    )
    logs = reference.fit(x, y, BATCH_SIZE, EPOCHS)
    return Run(case, model, history.history, reference, logs)


def test_updates_are_those_of_stock_optimizers_on_labelled_rows(done):
    trained = nets.values(done.model.weights)
    expected = nets.values(done.reference.model.weights)
    initial = nets.values(nets.mlp(keras.Model).weights)
    for a, b, start in zip(trained, expected, initial, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
        assert np.abs(b - start).max() > 1e-3


def test_losses_and_metrics_are_means_over_labelled_entries(done):
    for key, expected in done.expected_logs.items():
        if key == "loss":
            continue
        values = [np.nan if v is None else v for v in expected]
        np.testing.assert_allclose(
            done.logs[key], values, rtol=2e-4, atol=1e-6, err_msg=key
        )


def test_total_is_the_weighted_sum_of_the_tasks_that_ran(done):
    np.testing.assert_allclose(
        done.logs["loss"], done.expected_logs["loss"], rtol=2e-4
    )
    assert np.isfinite(done.logs["loss"]).all()


def test_history_has_the_keys_of_keras(done):
    stock = nets.mlp(keras.Model)
    stock.compile(
        "sgd",
        loss=nets.losses(),
        metrics={name: ["mae"] for name in nets.TASKS},
        run_eagerly=True,
    )
    x, y = nets.regression_data(rows=4)
    history = stock.fit(x, y, validation_data=(x, y), verbose=0)
    assert set(done.logs) == set(history.history)


def test_validation_is_on_labelled_rows(done):
    x, y = partly_labelled(seed=1)
    outputs = done.reference.model.predict(x, verbose=0)
    total = 0.0
    for name in nets.TASKS:
        error = (outputs[name] - y[name])[~np.isnan(y[name])]
        total += np.mean(error**2)
        for key, expected in {
            f"val_{name}_loss": np.mean(error**2),
            f"val_{name}_mae": np.mean(np.abs(error)),
        }.items():
            np.testing.assert_allclose(
                done.logs[key][-1], expected, rtol=5e-4, err_msg=key
            )
    np.testing.assert_allclose(done.logs["val_loss"][-1], total, rtol=5e-4)


@pytest.mark.parametrize(
    "done", [c for c in STRATEGIES if c.measures], indirect=True, ids=repr
)
def test_groups_follow_what_the_updates_did_to_the_losses(done):
    strategy, reference = done.model.update_strategy, done.reference
    np.testing.assert_allclose(
        strategy.affinity, reference.affinity, rtol=1e-3, atol=1e-6
    )
    assert strategy.groups == reference.groups
    assert 0 < len(strategy.groups) < len(nets.TASKS)
    assert np.abs(reference.affinity).min() > 1e-4


def test_a_task_that_never_ran_has_no_loss():
    """In epoch 2 `left` has labels in the first batch alone, and no turn.

    Turns are left, middle, right, left | middle, right, left, middle.
    """
    x, y = partly_labelled()
    y["left"][BATCH_SIZE:] = np.nan
    (case,) = (c for c in STRATEGIES if c.id == "round_robin")
    logs = run(case, x, y).logs
    assert np.isnan(logs["left_loss"][1])
    assert np.isfinite(logs["left_loss"][0])
    np.testing.assert_allclose(
        logs["loss"][1],
        logs["middle_loss"][1] + logs["right_loss"][1],
        rtol=1e-5,
    )


def test_batches_and_updates_are_counted(done):
    """The container counts batches, a clone the updates it made."""
    assert int(done.model.optimizer.iterations) == BATCHES * EPOCHS
    if done.case.id == "joint":
        return
    counts = sorted(
        int(clone.iterations) for clone in done.model.optimizer.optimizers
    )
    expected = sorted(
        int(optimizer.iterations)
        for optimizer in done.reference.optimizers.values()
    )
    # A clone that never ran is none of the reference's.
    assert [c for c in counts if c > 0] == expected


@every_strategy
def test_loss_weights_scale_losses_and_updates(case):
    """With momentum, whose updates are as large as their gradients."""
    weights = {"left": 0.5, "middle": 3.0, "right": 1.0}
    x, y = partly_labelled()

    def sgd():
        return keras.optimizers.SGD(0.05, momentum=0.9)

    model = nets.mlp(regularizer=keras.regularizers.L2(0.1))
    model.compile(
        sgd(),
        loss=nets.losses(),
        loss_weights=weights,
        strategy=case.strategy(),
        run_eagerly=True,
    )
    stock = nets.mlp(keras.Model, regularizer=keras.regularizers.L2(0.1))
    reference = Reference(case, stock, sgd, weights)
    history = model.fit(
        x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0
    ).history
    logs = reference.fit(x, y, BATCH_SIZE, 1)
    for a, b in zip(
        nets.values(model.weights), nets.values(stock.weights), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for key in history:
        np.testing.assert_allclose(
            history[key], logs[key], rtol=2e-4, err_msg=key
        )


@every_sub_stepped
def test_heads_move_in_their_own_sub_steps_only(case):
    """With momentum a foreign step would show as a second move."""
    x, y = nets.regression_data(rows=24)
    model = nets.mlp()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        loss=nets.losses(),
        strategy=case.strategy(),
        run_eagerly=True,
    )
    heads = {n: model.get_layer(f"head_{n}").weights for n in nets.TASKS}
    for step in range(3):
        before = {name: nets.values(head) for name, head in heads.items()}
        rows = slice(8 * step, 8 * step + 8)
        model.train_on_batch(x[rows], {k: v[rows] for k, v in y.items()})
        visited = {
            name for _, names in case.visits(nets.TASKS, step) for name in names
        }
        for name, head in heads.items():
            moved = [
                not np.array_equal(a, b)
                for a, b in zip(nets.values(head), before[name], strict=True)
            ]
            assert all(moved) if name in visited else not any(moved)
