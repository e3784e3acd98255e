import json
import os
import re
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras_tuner import HyperParameters
from keras_tuner.errors import FatalValueError

from mtlkeras.metrics import delta_m
from mtlkeras.tuner.update_space import task_names_of

FILE = "single_task_baselines.json"

# Last words of names. Keras Tuner takes every other metric of Keras, such as
# `F1Score`, for an error; here the user has to say.
HIGHER = {"accuracy", "acc", "auc", "precision", "recall"}
LOWER = {"loss", "error", "mae", "mse", "crossentropy"}


class SingleTaskBaselines:
    """What one network per task reaches: given, or trained once.

    Args:
        given, directions, groups, epochs: The arguments `baselines`,
            `higher_is_better`, `groups` and `baseline_epochs` of
            `MultiTaskHyperModel`.
    """

    def __init__(self, given, directions, groups, epochs):
        if given != "train" and not (isinstance(given, dict) and given):
            raise ValueError(
                "Argument `baselines` must be 'train' or a dict from keys of "
                "the logs to numbers, such as {'left_accuracy': 0.9}. "
                f"Received: baselines={given!r}"
            )
        if epochs is not None and not (isinstance(epochs, int) and epochs > 0):
            raise ValueError(
                "Argument `baseline_epochs` must be a positive integer. "
                f"Received: baseline_epochs={epochs!r}"
            )
        self.given = None if given == "train" else dict(given)
        self.directions = directions
        self.groups = groups
        self.epochs = epochs
        self.trained = {}  # by project, for who uses a hypermodel twice
        # What is measured, as far as it is known before the training.
        self.keys = list(directions) if isinstance(directions, dict) else []
        if self.given is not None:
            self.keys = list(self.given)
        if self.keys:
            self.settings(self.given or dict.fromkeys(self.keys, 1.0))

    def settings(self, values):
        """`(values, directions, groups)`, checked, as `DeltaM` takes them."""
        directions = {key: self._is_higher_better(key) for key in values}
        if isinstance(self.directions, dict):
            directions = self.directions
        try:
            delta_m(values, values, directions, self.groups)
        except ValueError as error:
            raise FatalValueError(str(error)) from error
        return values, directions, self.groups

    def check_tasks(self, model):
        """Whether every key belongs to a task of the model."""
        tasks = task_names_of(model)
        foreign = [key for key in self.keys if task_of(key, tasks) is None]
        if foreign and len(tasks) > 1:
            raise FatalValueError(
                "The keys of `baselines` and `higher_is_better` must name a "
                "task and what is measured of it, as the logs do: "
                f"'{tasks[0]}_loss', for example. The tasks are {list(tasks)}. "
                f"Received: {foreign}, which name none of them."
            )

    def find(self, hypermodel, hp, tuner, args, kwargs):
        """The values, by key of the logs; trained if they are not known.

        Args:
            hypermodel: The `MultiTaskHyperModel`.
            hp: The `HyperParameters` of a trial.
            tuner: The tuner that runs it, or `None`.
            args, kwargs: Arguments of `fit`, without callbacks.
        """
        if self.given is not None:
            return self.given
        file = None if tuner is None else Path(tuner.project_dir, FILE)
        if file in self.trained:
            return self.trained[file]
        if file is not None and file.exists():
            values = json.loads(file.read_text())
            self._check_stored(values, file)
        else:
            values = self._train(hypermodel, hp, tuner, args, dict(kwargs))
            self.settings(values)  # before anything is written
            if file is not None:
                values = store(values, file)
        self.trained[file] = values
        return values

    def _check_stored(self, values, file):
        if self.keys and set(values) != set(self.keys):
            raise FatalValueError(
                f"The search in {file.parent} compares with baselines for "
                f"{sorted(values)}. Received others in `higher_is_better`: "
                f"{sorted(self.keys)}. Use another `project_name`, or "
                "`overwrite=True` to begin anew."
            )

    def _is_higher_better(self, key):
        if self.directions is None:
            return direction_of(key)
        if isinstance(self.directions, dict):
            return self.directions.get(key)
        return self.directions

    # -- training -------------------------------------------------------------

    def _train(self, hypermodel, hp, tuner, args, kwargs):
        # At the defaults, whichever trial happens to be the first.
        defaults = HyperParameters()
        defaults.merge(hp)
        kwargs.pop("initial_epoch", None)
        epochs = self.epochs or longest_trial(tuner)
        if epochs is not None:
            kwargs["epochs"] = epochs
        found = {}
        tasks = task_names_of(hypermodel.build_inner(defaults))
        for task in tasks:
            # So that names such as `auc` are those of the first model.
            keras.backend.clear_session()
            model = hypermodel.build_inner(defaults)
            if kwargs.get("verbose", "auto") != 0:
                print(f"Training the single-task baseline of '{task}'")
            compile_for(model, task, tasks)
            hypermodel.fit_inner(defaults, model, *args, callbacks=[], **kwargs)
            found |= self._best(task, tasks, model.history.history)
        missing = [key for key in self.keys if key not in found]
        if missing:
            raise FatalValueError(
                "The keys of `higher_is_better` must be keys of the logs, "
                f"without 'val_'. Received: {missing}, while the logs have "
                f"{sorted(model.history.history)}. Pass what is to be measured "
                "to `model.compile(metrics={...})`."
            )
        return found

    def _best(self, task, tasks, history):
        """Best validation values of one task."""
        logs = {
            key.removeprefix("val_"): values
            for key, values in history.items()
            if key.startswith("val_")
        }
        if not logs:
            raise FatalValueError(
                "Single-task baselines are measured in validation. Pass "
                "`validation_data` or `validation_split` to `search`."
            )
        own = [
            key
            for key in logs
            if len(tasks) == 1 or task_of(key, tasks) == task
        ]
        if self.keys:
            own = [key for key in own if key in self.keys]
        else:
            loss = "loss" if len(tasks) == 1 else f"{task}_loss"
            own = [key for key in own if key != loss] or [loss]
        return {
            key: best(logs[key], self._is_higher_better(key)) for key in own
        }


def best(values, higher_is_better):
    """The best of the epochs that are not NaN."""
    return float((np.nanmax if higher_is_better else np.nanmin)(values))


def compile_for(model, task, tasks):
    """Compiles a model anew, to be updated by one of its tasks alone.

    The other losses count 0, so that logs have the same keys as in a trial.
    """
    state = model._multi_task
    model.compile(
        **{
            **state.arguments,
            "loss_weights": {name: float(name == task) for name in tasks},
            "jit_compile": model.jit_compile,
            "on_nonfinite": state.on_nonfinite,
        }
    )


def longest_trial(tuner):
    """Epochs of the longest trials of Hyperband, or `None`."""
    oracle = getattr(tuner, "oracle", None)
    # Workers of a distributed search see a client of the chief's.
    oracle = getattr(oracle, "_oracle", oracle)
    return getattr(oracle, "max_epochs", None)


def store(values, file):
    """Writes the file unless there is one; returns what is in it.

    Of several workers the first one counts. It appears as a whole.
    """
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    with os.fdopen(handle, "w") as temporary:
        json.dump(values, temporary)
    try:
        os.link(name, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(name, file)
    Path(name).unlink(missing_ok=True)
    return json.loads(file.read_text())


def task_of(key, tasks):
    """The task that a key of the logs belongs to, or `None`."""
    found = [task for task in tasks if key.startswith(f"{task}_")]
    return max(found, key=len, default=None)


def direction_of(key):
    """Whether higher is better, from the last word of a name."""
    last = re.sub(r"(_\d+)$", "", key).rpartition("_")[2]
    if last in HIGHER | LOWER:
        return last in HIGHER
    raise FatalValueError(
        f"It is not known whether a higher {key!r} is better. Pass a dict "
        "from such keys to booleans: "
        f"`higher_is_better={{{key!r}: True, ...}}`."
    )
