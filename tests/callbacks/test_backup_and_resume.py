import copy
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras.callbacks import BackupAndResume

SCRIPT = pathlib.Path(__file__).parent / "train_and_die.py"
spec = importlib.util.spec_from_file_location("train_and_die", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def run_script(*arguments):
    """Starts the training script; `communicate()` waits for its end."""
    root = SCRIPT.parents[2]
    path = os.pathsep.join(
        [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def exit_code(process):
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def assert_same_bits(state, expected):
    assert sorted(state) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(state[name], expected[name], name)


@pytest.mark.parametrize(
    ("model", "steps_per_execution", "kill"),
    [
        ("stock", 1, ("--kill_at", 1, 3)),
        ("stock", 4, ("--kill_in_write", 5)),  # epoch 1, after batch 4 of 5
    ],
)
def test_sigkill(tmp_path, model, steps_per_execution, kill):
    common = [model, "--steps_per_execution", steps_per_execution]
    whole = run_script(*common, "--out", tmp_path / "whole.npz")
    backed_up = [*common, "--out", tmp_path / "resumed.npz", "--save_freq", 2]
    backed_up += ["--backup_dir", tmp_path / "backup"]
    assert exit_code(run_script(*backed_up, *kill)) == -signal.SIGKILL
    assert not (tmp_path / "resumed.npz").exists()
    assert exit_code(run_script(*backed_up)) == 0
    assert exit_code(whole) == 0

    expected = dict(np.load(tmp_path / "whole.npz"))
    resumed = dict(np.load(tmp_path / "resumed.npz"))
    assert expected.pop("epochs_run") == 3
    assert resumed.pop("epochs_run") == 2
    assert_same_bits(resumed, expected)
    assert not (tmp_path / "backup").exists()


# Below, a kill is an exception, and the run that resumes is a new model.

# 1 tries every event of `fit` (minutes); no divisor of the events of a batch.
EVENTS_APART = int(os.environ.get("EVENTS_APART", "31"))


class Killed(Exception):
    pass


def raise_killed():
    raise Killed


class KillAtEvent(keras.callbacks.Callback):
    """Kills at the n-th call of any hook of `fit`; counts them."""

    def __init__(self, number=None):
        super().__init__()
        self.number = number
        self.count = 0

    def event(self, *args, **kwargs):
        if self.count == self.number:
            raise Killed
        self.count += 1

    on_epoch_begin = on_epoch_end = event
    on_train_batch_begin = on_train_batch_end = event
    on_test_begin = on_test_end = event


def small(steps_per_execution=1, run_eagerly=True, units=1):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dropout(0.5),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(units),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss="mse",
        metrics=["mae"],
        steps_per_execution=steps_per_execution,
        run_eagerly=run_eagerly,
    )
    return model


def batches(number):
    x, y = script.data(number)
    return x, y["left"]


def arrays():
    x, y = batches(4)
    return {"x": x, "y": y, "batch_size": script.BATCH_SIZE, "epochs": 3}


def arrays_with_validation():
    return {**arrays(), "validation_split": 0.25}


def dataset(number):
    slices = tf.data.Dataset.from_tensor_slices(batches(number))
    return slices.batch(script.BATCH_SIZE)


def unknown_length():
    return {"x": dataset(4).filter(lambda x, y: True), "epochs": 3}


def stream():
    """Epochs that read on where the epoch before stopped."""
    return {"x": dataset(5).repeat(), "steps_per_epoch": 4, "epochs": 4}


def stream_that_begins_again():
    """Two epochs use one iterator up; `fit` then makes another."""
    return {"x": dataset(6), "steps_per_epoch": 3, "epochs": 4}


def stream_that_breaks_off():
    """The data end in the middle of every second epoch."""
    return {"x": dataset(6), "steps_per_epoch": 4, "epochs": 4}


def generator():
    def forever():
        x, y = batches(5)
        while True:
            for i in range(0, len(x), script.BATCH_SIZE):
                yield x[i : i + script.BATCH_SIZE], y[i : i + script.BATCH_SIZE]

    return {"x": forever(), "steps_per_epoch": 3, "epochs": 3}


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        x, y = batches(4)
        rows = slice(i * script.BATCH_SIZE, (i + 1) * script.BATCH_SIZE)
        return x[rows], y[rows]


def py_dataset():
    return {"x": Sequence(), "epochs": 3}


def train(data, callbacks=(), model=None, **model_arguments):
    model = model or small(**model_arguments)
    history = model.fit(
        **data(), shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return script.end_state(model, history)


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize(
    ("data", "steps_per_execution"),
    [
        (arrays, 1),
        (arrays, 3),
        (arrays_with_validation, 1),
        (unknown_length, 1),
        (stream, 1),
        (stream, 3),
        (stream_that_breaks_off, 1),
        (generator, 1),
        (py_dataset, 1),
    ],
)
def test_killed_at_any_event(tmp_path, data, steps_per_execution):
    count = KillAtEvent()
    expected = train(data, [count], steps_per_execution=steps_per_execution)
    for first, save_freq in enumerate(["epoch", 2]):
        for number in range(first, count.count, EVENTS_APART):
            backup = BackupAndResume(tmp_path, save_freq)
            killer = KillAtEvent(number)
            with pytest.raises(Killed):
                train(
                    data,
                    # Killed before or after the backup of the same event.
                    [backup, killer] if number % 2 else [killer, backup],
                    steps_per_execution=steps_per_execution,
                )
            resumed = train(
                data, [backup], steps_per_execution=steps_per_execution
            )
            if "log_loss" not in resumed:  # killed in the last event
                resumed.update(
                    {k: v for k, v in expected.items() if k.startswith("log_")}
                )
            assert_same_bits(resumed, expected)


def test_stream_that_begins_again(tmp_path):
    """`fit` begins it anew at epoch 2, which a run resumed in 1 cannot."""
    expected = train(stream_that_begins_again)

    def run(callbacks=()):
        backup = BackupAndResume(tmp_path, save_freq=1)
        return train(stream_that_begins_again, [backup, *callbacks])

    with pytest.raises(Killed):
        run([script.Killer(1, 1, raise_killed)])
    with pytest.raises(RuntimeError, match="Start the same script again"):
        run()
    assert_same_bits(run(), expected)
    for place in [(0, 1), (2, 1)]:
        with pytest.raises(Killed):
            run([script.Killer(*place, raise_killed)])
        assert_same_bits(run(), expected)


def test_killed_in_a_write(tmp_path, monkeypatch):
    expected = train(stream)
    for number in (1, 2, 8):
        monkeypatch.setattr(os, "replace", os.replace)
        script.die_in_write(number, die=raise_killed)
        with pytest.raises(Killed):
            train(stream, [BackupAndResume(tmp_path, save_freq=2)])
        monkeypatch.undo()
        resumed = train(stream, [BackupAndResume(tmp_path, save_freq=2)])
        assert_same_bits(resumed, expected)


def test_killed_again_and_again(tmp_path):
    """Every run gets a little further, and some are killed while skipping."""
    expected = train(stream)
    for number in (9, 3, 20):
        with pytest.raises(Killed):
            train(
                stream,
                [BackupAndResume(tmp_path, save_freq=1), KillAtEvent(number)],
            )
    resumed = train(stream, [BackupAndResume(tmp_path, save_freq=1)])
    assert_same_bits(resumed, expected)


def test_the_model_that_was_interrupted_goes_on(tmp_path):
    """Its metrics are built: no batch is trained on to build them."""
    expected = train(arrays)
    model = small()
    with pytest.raises(Killed):
        train(
            arrays,
            [script.Killer(1, 2, raise_killed), BackupAndResume(tmp_path, 1)],
            model=model,
        )
    assert int(model.optimizer.iterations) == 7
    assert_same_bits(
        train(arrays, [BackupAndResume(tmp_path, 1)], model=model), expected
    )


def test_batches_are_not_trained_on_again(tmp_path):
    class Counting(keras.Model):
        steps = 0

        def train_step(self, data):
            self.steps += 1
            return super().train_step(data)

    def build():
        source = small()
        model = Counting(source.inputs, source.outputs)
        model.compile("adam", loss="mse", metrics=["mae"], run_eagerly=True)
        return model

    killer = script.Killer(1, 3, raise_killed)
    killed = build()
    with pytest.raises(Killed):
        train(arrays, [BackupAndResume(tmp_path, 3), killer], model=killed)
    assert killed.steps == 8
    resumed = build()
    train(arrays, [BackupAndResume(tmp_path, 3)], model=resumed)
    # The backup has 7 of 12; one step creates the metrics and is undone.
    assert resumed.steps == 5 + 1


def test_save_freq_below_steps_per_execution(tmp_path):
    """Saved at the end of the execution that reaches the batch."""
    saved = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            backup = BackupAndResume(tmp_path)._read_index()
            saved.append((batch + 1, backup and backup["batch"]))

    x, y = batches(12)
    model = small(steps_per_execution=4)
    model.fit(
        x,
        y,
        batch_size=script.BATCH_SIZE,
        shuffle=False,
        verbose=0,
        callbacks=[BackupAndResume(tmp_path, save_freq=6), Watch()],
    )
    assert saved == [(4, None), (8, 8), (12, 12)]


def test_callbacks_that_change_the_model(tmp_path):
    """What a callback did before the backup is not done twice."""

    class Decay(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            optimizer.learning_rate = 0.9 * float(optimizer.learning_rate)

        on_epoch_begin = on_epoch_end = on_train_batch_end

    expected = train(arrays, [Decay()])
    for place in [(1, 1), (1, 3), (2, 0)]:
        killer = script.Killer(*place, raise_killed)
        with pytest.raises(Killed):
            train(arrays, [Decay(), BackupAndResume(tmp_path, 1), killer])
        resumed = train(arrays, [Decay(), BackupAndResume(tmp_path, 1)])
        assert_same_bits(resumed, expected)


class OwnStep(keras.Model):
    """A train step whose logs are not the model's metrics."""

    def train_step(self, data):
        logs = super().train_step(data)
        return {"twice": 2 * logs["loss"]}


def test_own_train_step(tmp_path):
    def build():
        source = small()
        model = OwnStep(source.inputs, source.outputs)
        model.compile("adam", loss="mse", jit_compile=False)
        return model

    expected = train(arrays, model=build())
    for place in [(1, 1), (2, 3)]:
        killer = script.Killer(*place, raise_killed)
        with pytest.raises(Killed):
            train(arrays, [BackupAndResume(tmp_path, 1), killer], model=build())
        resumed = train(arrays, [BackupAndResume(tmp_path, 1)], model=build())
        assert "log_twice" in resumed
        assert_same_bits(resumed, expected)


def test_mixed_bfloat16(tmp_path):
    def build():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(4, dtype="bfloat16"),
                keras.layers.Dropout(0.5, dtype="bfloat16"),
                keras.layers.Dense(1),
            ]
        )
        metric = keras.metrics.MeanAbsoluteError(dtype="bfloat16")
        model.compile("adam", loss="mse", metrics=[metric], jit_compile=False)
        return model

    expected = train(arrays, model=build())
    killer = script.Killer(1, 2, raise_killed)
    with pytest.raises(Killed):
        train(arrays, [BackupAndResume(tmp_path, 1), killer], model=build())
    resumed = train(arrays, [BackupAndResume(tmp_path, 1)], model=build())
    assert_same_bits(resumed, expected)


def test_logs_of_skipped_batches(tmp_path, capsys):
    class Record(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.logs = []

        def on_train_batch_end(self, batch, logs=None):
            self.logs.append(logs)

    killer = script.Killer(1, 2, raise_killed)
    with pytest.raises(Killed):
        train(arrays, [BackupAndResume(tmp_path, 2), killer])
    record = Record()
    model = small()
    history = model.fit(
        **arrays(),
        shuffle=False,
        verbose=1,
        callbacks=[BackupAndResume(tmp_path, 2), record],
    )
    assert {tuple(sorted(logs)) for logs in record.logs} == {("loss", "mae")}
    assert record.logs[0] == record.logs[1] != record.logs[2]
    assert history.epoch == [1, 2]
    assert "Epoch 2/3" in capsys.readouterr().out


def test_delete_backup(tmp_path):
    kept = tmp_path / "of_the_user.txt"
    kept.write_text("")
    model = small()
    train(arrays, [BackupAndResume(tmp_path)], model=model)
    assert os.listdir(tmp_path) == ["of_the_user.txt"]

    # Nothing of the callback is left in the model.
    before = model.train_function
    history = model.fit(**arrays(), shuffle=False, verbose=0)
    assert history.epoch == [0, 1, 2]
    assert model.train_function is before

    state = train(arrays, [BackupAndResume(tmp_path, delete_backup=False)])
    assert len(os.listdir(tmp_path)) == 4
    model = small()
    again = BackupAndResume(tmp_path, delete_backup=False)
    history = model.fit(**arrays(), shuffle=False, verbose=0, callbacks=[again])
    assert history.epoch == []
    end = script.end_state(model, history)
    assert_same_bits(
        end, {k: v for k, v in state.items() if not k.startswith("log_")}
    )


def test_state_is_created_in_on_train_begin(tmp_path):
    backup = BackupAndResume(tmp_path, save_freq=2)
    assert_same_bits(train(arrays, [copy.deepcopy(backup)]), train(arrays))
    train(arrays, [backup])
    assert copy.deepcopy(backup).save_freq == 2


@pytest.mark.parametrize("backup_dir", ["", None, 3])
def test_bad_backup_dir(backup_dir):
    with pytest.raises(ValueError, match="`backup_dir` must be the path"):
        BackupAndResume(backup_dir)


@pytest.mark.parametrize("save_freq", [0, -1, 2.0, True, False, "batch", None])
def test_bad_save_freq(tmp_path, save_freq):
    with pytest.raises(ValueError, match="`save_freq` must be 'epoch' or"):
        BackupAndResume(tmp_path, save_freq)


def test_unbuilt_model(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="model that is built before `fit`"):
        train(arrays, [BackupAndResume(tmp_path)], model=model)


def test_backup_of_another_run(tmp_path):
    killer = script.Killer(1, 2, raise_killed)
    with pytest.raises(Killed):
        train(arrays, [BackupAndResume(tmp_path, 1), killer])
    before = sorted(os.listdir(tmp_path))

    def fails(message, model=None, **changes):
        with pytest.raises(ValueError, match=message):
            (model or small()).fit(
                **{**arrays(), **changes},
                shuffle=False,
                verbose=0,
                callbacks=[BackupAndResume(tmp_path, 1)],
            )
        assert sorted(os.listdir(tmp_path)) == before

    fails(
        r"variables of the model must.*Received: shape \(6, 2\) .*"
        r"number \d, and shape \(6, 1\)",
        small(units=2),
    )
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    other.compile("adam", loss="mse")
    fails("Received: 2 variables, and 7 variables", other)
    other = small()
    other.compile("adam", loss="mse")
    fails("variables of the optimizer must", other)
    other = small()
    other.compile(other.optimizer, loss="mse", metrics=[])
    fails("variables of the metrics must", other)
    fails("The steps_per_execution must", small(steps_per_execution=2))
    fails("The steps must.*Received: 8, and 4", batch_size=4)
    fails("as many epochs", epochs=0)
    # After all that, the backup is as good as before.
    assert_same_bits(
        train(arrays, [BackupAndResume(tmp_path, 1)]), train(arrays)
    )


def test_initial_epoch_after_the_backup(tmp_path):
    with pytest.raises(Killed):
        train(
            arrays,
            [BackupAndResume(tmp_path, 1), script.Killer(0, 2, raise_killed)],
        )
    with pytest.raises(ValueError, match="start at or before the epoch"):
        small().fit(
            **arrays(),
            initial_epoch=1,
            shuffle=False,
            verbose=0,
            callbacks=[BackupAndResume(tmp_path, 1)],
        )


def test_data_that_end_too_early(tmp_path):
    with pytest.raises(Killed):
        train(
            stream,
            [BackupAndResume(tmp_path, 1), script.Killer(1, 2, raise_killed)],
        )

    for number in (2, 5):  # before the epoch, and within it
        with pytest.raises(ValueError, match="data that end before batch 3"):
            small().fit(
                dataset(number),
                steps_per_epoch=4,
                epochs=4,
                shuffle=False,
                verbose=0,
                callbacks=[BackupAndResume(tmp_path, 1)],
            )
