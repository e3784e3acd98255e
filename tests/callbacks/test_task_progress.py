"""What `fit` prints: Keras's own bar, readable with forty tasks."""

import re

import keras
import nets
import numpy as np
import pytest

from mtlkeras import callbacks

MANY = tuple(f"task_{number}" for number in range(12))


def fit(tasks, verbose, cls=None, validation=False, metrics=None, **kwargs):
    """The history of two epochs; task number `i` has targets of size `i`."""
    model = nets.mlp(*([] if cls is None else [cls]), tasks=tasks)
    model.compile("sgd", nets.losses(tasks), metrics=metrics)
    x, _ = nets.regression_data(rows=16)
    y = {
        name: np.full((16, 1), float(number))
        for number, name in enumerate(tasks)
    }
    if validation:
        # Here the first tasks are worse.
        kwargs["validation_data"] = (x, {n: 20 - t for n, t in y.items()})
    return model.fit(
        x, y, batch_size=8, epochs=2, shuffle=False, verbose=verbose, **kwargs
    ).history


def lines_of(text):
    """The printed lines, without colours, of what remains on the screen."""
    text = re.sub(r"\x1b\[\d+m", "", text)
    lines = [re.split(r"[\b\r]+", line)[-1] for line in text.split("\n")]
    return [line.strip() for line in lines if " - " in line]


def shown(line):
    return re.findall(r"- (\w+): ", line)


@pytest.mark.parametrize("verbose", [1, 2, "auto"])
def test_the_total_and_the_worst_of_many_tasks(verbose, capsys):
    history = fit(MANY, verbose)
    lines = lines_of(capsys.readouterr().out)
    ends = [line for line in lines if line.startswith("2/2")]
    assert len(ends) == 2
    for epoch, line in enumerate(ends):
        losses = {name: history[f"{name}_loss"][epoch] for name in MANY}
        worst = sorted(MANY, key=losses.get)[:-4:-1]
        assert shown(line) == ["loss", *(f"{name}_loss" for name in worst)]
        value = re.search(rf"{worst[0]}_loss: (\S+)", line).group(1)
        assert float(value) == pytest.approx(losses[worst[0]], rel=1e-3)
    assert set(history) == {"loss", *(f"{name}_loss" for name in MANY)}


def test_the_worst_in_validation_with_their_metrics(capsys):
    history = fit(
        MANY, 2, validation=True, metrics=dict.fromkeys(MANY, ["mae"])
    )
    lines = lines_of(capsys.readouterr().out)
    for epoch, line in enumerate(lines):
        losses = {name: history[f"val_{name}_loss"][epoch] for name in MANY}
        worst = sorted(MANY, key=losses.get)[:-4:-1]
        assert "task_0" in worst
        keys = shown(line)
        assert keys[:2] == ["loss", "val_loss"]
        assert set(keys[2:]) == {
            f"{prefix}{name}_{key}"
            for prefix in ("", "val_")
            for name in worst
            for key in ("loss", "mae")
        }
    assert len(history) == 2 + 4 * len(MANY)


def test_what_belongs_to_no_task_is_shown(capsys):
    class Extra(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["learning_rate"] = 0.25

    monitor = callbacks.TaskMonitor()
    history = fit(MANY, 2, callbacks=[Extra(), monitor])
    printed = capsys.readouterr().out
    for line in lines_of(printed):
        assert len(shown(line)) == 5
        assert shown(line)[1] == "learning_rate"
    assert "cosine" not in printed
    assert len(history["cosine/task_0/task_11"]) == 2


@pytest.mark.parametrize("verbose", [1, 2])
def test_evaluate_shows_the_total_and_the_worst(verbose, capsys):
    model = nets.mlp(tasks=MANY)
    model.compile("sgd", nets.losses(MANY))
    x, _ = nets.regression_data(rows=16)
    y = {n: np.full((16, 1), float(i)) for i, n in enumerate(MANY)}
    found = model.evaluate(x, y, verbose=verbose, return_dict=True)
    assert set(found) == {"loss", *(f"{name}_loss" for name in MANY)}
    (line,) = lines_of(capsys.readouterr().out)
    worst = sorted(MANY, key=lambda n: found[f"{n}_loss"])[:-4:-1]
    assert shown(line) == ["loss", *(f"{name}_loss" for name in worst)]
    # Positions are Keras's own.
    silent = model.evaluate(x, y, 8, 0, None, None, None, True)
    assert silent == pytest.approx(found, rel=1e-5)
    assert capsys.readouterr().out == ""


def test_few_tasks_are_shown_as_keras_shows_them(capsys):
    printed = []
    for cls in (None, keras.Model):
        fit(nets.TASKS, 2, cls, validation=True)
        lines = lines_of(capsys.readouterr().out)
        printed.append([re.sub(r"\d+m?s(/step)?", "", n) for n in lines])
    assert printed[0] == printed[1]


def test_nothing_is_printed_without_verbose(capsys):
    fit(MANY, 0)
    assert capsys.readouterr().out == ""


def test_a_bar_of_the_user_stays(capsys):
    fit(MANY, 2, callbacks=[keras.callbacks.ProgbarLogger()])
    (first, second) = lines_of(capsys.readouterr().out)
    assert len(shown(first)) == len(shown(second)) == 1 + len(MANY)


def test_keys_go_to_the_task_with_the_longest_name():
    from mtlkeras.callbacks.task_progress import task_of

    names = ("a", "a_b", "b")
    assert task_of("a_b_loss", names) == "a_b"
    assert task_of("a_loss", names) == "a"
    assert task_of("loss", names) is None
