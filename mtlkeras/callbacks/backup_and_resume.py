"""Back up a training run so that a killed one ends with the same bits."""

import json
import numbers
import os
import re
import tempfile
import warnings

import keras
import numpy as np

from mtlkeras.backend.tensorflow import writes_files

# Says which data files are the backup in force; replaced atomically.
INDEX = "backup.json"
NEW_INDEX = "backup.json.new"
DATA_FILE = re.compile(r"backup-(\d+)\.(weights\.h5|npz)")


class BackupAndResume(keras.callbacks.Callback):
    """Resumes a killed training run in the middle of an epoch, bit for bit.

    A run that was killed at any time (`SIGKILL`, preemption, a crash) and
    started again by the same script ends with the same weights, the same
    optimizer state and the same logs as a run that was never killed. Nothing
    has to be changed in the script: `fit` finds the backup and goes on from it.

    Choose it when epochs are long or machines are preempted.
    `keras.callbacks.BackupAndRestore` is exact at the end of an epoch only, and
    only without random layers: the random state of `keras.layers.Dropout`
    starts anew, and with `save_freq=n` the epoch is repeated from its first
    batch, on weights that have already seen part of it.

    A backup holds what `model.save_weights` writes (weights and optimizer
    state) and what that leaves out: random states, the metrics of the running
    epoch, and how far the data set has been read. A resumed `fit` reads and
    drops the batches that were seen already. Other callbacks are called for
    these batches too, with the logs of the backup. If the metrics of the model
    are created by its first training step, the last of them is trained on, and
    everything is restored after it.

    Put it last in the list of callbacks, so that a backup holds what the other
    callbacks did to the model.

    Args:
        backup_dir: String or path of a local directory. It must not be used by
            another run, or by another `fit` of the same script. Only files that
            this callback wrote are ever deleted in it.
        save_freq: `"epoch"`, or an integer: back up every `save_freq` batches
            of an epoch as well as at its end. With `steps_per_execution` above
            1, the backup is written at the end of the execution that reaches
            the batch. Defaults to `"epoch"`.
        delete_backup: Boolean. Delete the backup when `fit` has finished. With
            `False` a finished script that is started again trains no further.
            Defaults to `True`.

    Raises:
        ValueError: If an argument is not as above; in `fit`, if the model is
            not built, or if the backup belongs to another model, optimizer,
            `steps_per_execution`, number of batches or number of epochs.

    Example:

    >>> import tempfile
    >>> def train(callbacks):
    ...     keras.utils.set_random_seed(0)
    ...     model = keras.Sequential([
    ...         keras.Input((4,)), keras.layers.Dropout(0.5),
    ...         keras.layers.Dense(1)])
    ...     model.compile("adam", "mse")
    ...     x, y = np.ones((12, 4)), np.arange(12.0)[:, None]
    ...     model.fit(x, y, batch_size=2, epochs=2, shuffle=False, verbose=0,
    ...               callbacks=callbacks)
    ...     return model.get_weights()
    >>> class Killer(keras.callbacks.Callback):
    ...     def on_train_batch_begin(self, batch, logs=None):
    ...         if self.model.optimizer.iterations == 9:
    ...             raise RuntimeError("killed in the second epoch")
    >>> directory = tempfile.mkdtemp()
    >>> backup = mtlkeras.callbacks.BackupAndResume(directory, save_freq=2)
    >>> try:
    ...     train([Killer(), backup])
    ... except RuntimeError as error:
    ...     print(error)
    killed in the second epoch
    >>> resumed = train([backup])
    >>> whole = train([])
    >>> all(np.array_equal(a, b) for a, b in zip(resumed, whole))
    True

    What it cannot do:

    - The data must be deterministic: the same batches in every epoch
      (`shuffle=False`, `tf.data` without reshuffling, a `keras.utils.PyDataset`
      that does not change between epochs), or one stream that `fit` reads on
      through all epochs (`steps_per_epoch` with a repeated data set), which is
      then read and dropped from its beginning. The default `shuffle=True` of
      `fit` on arrays is not.
    - Other callbacks keep their own counters and histories (patience, best
      value, the epochs before in `History`), and those start anew. Callbacks
      that keep their state in the model are resumed.
    - Random numbers drawn without a seed generator of the model (a
      `keras.random` call without `seed`, `numpy.random`, `random`) are not
      resumed.
    - At the end of an epoch the callback learns only from the next epoch
      whether `fit` goes on reading the same iterator. Where this is open (the
      first epoch; every epoch of a stream) a run killed just there resumes
      from the last batch of the epoch: nothing is trained twice, its
      validation and the `on_epoch_end` of other callbacks are repeated.
    - With `steps_per_epoch` and a data set that is finite and exactly used up
      by several epochs, a resumed `fit` cannot begin the data anew: it stops
      there with an error and is to be started once more. Repeat the data set
      without end (`dataset.repeat()`) to avoid it.
    - Under `tf.distribute` a resumed metric is spread evenly over the replicas,
      so the logs of the resumed epoch may differ by rounding.
    - Of several workers (`MultiWorkerMirroredStrategy`) the chief writes the
      backup and all read it, so the directory must be one that all of them see.
      If one worker is killed, all of them must be started again.
    """

    def __init__(self, backup_dir, save_freq="epoch", delete_backup=True):
        super().__init__()
        if not isinstance(backup_dir, (str, os.PathLike)) or not os.fspath(
            backup_dir
        ):
            raise ValueError(
                "Argument `backup_dir` must be the path of a directory. "
                f"Received: backup_dir={backup_dir!r}. Pass a directory that "
                "only this run uses; it is created if it does not exist."
            )
        if save_freq != "epoch" and not (
            isinstance(save_freq, numbers.Integral)
            and not isinstance(save_freq, bool)
            and save_freq > 0
        ):
            raise ValueError(
                "Argument `save_freq` must be 'epoch' or a positive integer. "
                f"Received: save_freq={save_freq!r}. Pass the number of "
                "batches between two backups, or 'epoch' for one per epoch."
            )
        self.backup_dir = backup_dir
        self.save_freq = save_freq
        self.delete_backup = delete_backup

    def on_train_begin(self, logs=None):
        if not self.model.built:
            raise ValueError(
                "`BackupAndResume` needs a model that is built before `fit`. "
                f"Received: {self.model}, which is not. Call it once on a "
                "batch of data, or call `build()` with the shape of its input."
            )
        optimizer = self.model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)

        self._writes = writes_files(self.model)
        self._batch = 0  # batches of the running epoch
        self._offset = 0  # read from its iterator before the epoch began
        self._iterator = None
        self._epoch_is_new = True  # no batch of it has been asked for
        self._was_fast_forwarded = False  # the iterator, unknown to `fit`
        # Whether every epoch begins a new iterator; None: not known yet.
        # Without a number of steps `fit` reads each epoch to its end.
        self._fresh_iterators = True if self.params["steps"] is None else None
        self._uncommitted = None
        self._skip_to = 0
        self._initial_epoch_before = self.model._initial_epoch
        self._backup = self._read_index()
        if self._backup is None:
            return

        self._check_backup()
        self._restore()
        self._skip_to = self._backup["batch"]
        self._fresh_iterators = self._backup["fresh_iterators"]
        # The hook that Keras keeps for callbacks ("Can be set by callbacks in
        # on_train_begin"), and the only private name of Keras used here.
        # `on_epoch_begin` puts it back, or the next `fit` would start there.
        self.model._initial_epoch = self._backup["epoch"]

    def on_epoch_begin(self, epoch, logs=None):
        self.model._initial_epoch = self._initial_epoch_before
        resumes = self._backup is not None and self._iterator is None
        if resumes and epoch != self._backup["epoch"]:
            raise ValueError(
                "`fit` must start at or before the epoch of the backup. "
                f"Received: epoch {epoch}, and a backup of epoch "
                f"{self._backup['epoch']} in '{self.backup_dir}'. Call `fit` "
                "with the `initial_epoch` of the run that was killed, or "
                "delete the directory to start anew."
            )
        self._epoch = epoch
        self._offset += self._batch
        self._batch = 0
        self._epoch_is_new = True

    def on_train_batch_begin(self, batch, logs=None):
        if not self._epoch_is_new and self._batch >= self._skip_to:
            return
        train_function = self.model.train_function

        def first_or_skipped_step(iterator):
            # Used once: whatever happens, the model keeps its own function.
            self.model.train_function = train_function
            if self._epoch_is_new:
                self._begin_reading(iterator)
            if self._batch < self._skip_to:
                return self._skip(iterator, train_function)
            try:
                return train_function(iterator)
            except Exception as error:
                if is_out_of_data(error) and self._was_fast_forwarded:
                    self._say_that_fit_lost_count(error)
                raise

        self.model.train_function = first_or_skipped_step

    def on_train_batch_end(self, batch, logs=None):
        before, self._batch = self._batch, batch + 1
        if self._epoch_is_new:
            raise RuntimeError(
                "`BackupAndResume` must see the first step of an epoch, and "
                "another callback replaced `model.train_function` after it. "
                "Put `BackupAndResume` last in the list of callbacks."
            )
        if before < self._skip_to:
            if self._batch >= self._skip_to:
                # Once more, now that the metrics exist: undoes what `fit`
                # (reset_metrics) and other callbacks did since
                # `on_train_begin`, in this callback's place in the list.
                self._restore(metrics=True)
                self._skip_to = 0
            return
        steps = self.params["steps"]
        due = self.save_freq != "epoch" and (
            self._batch // self.save_freq > before // self.save_freq
        )
        # The backup at the epoch's end may come into force late: see there.
        last = not self._fresh_iterators and self._batch >= steps
        if due or last:
            backup = self._write(self._epoch, self._batch, logs)
            self._commit(backup, self._offset)

    def on_epoch_end(self, epoch, logs=None):
        if self._skip_to:
            raise self._out_of_data()
        backup = self._write(epoch + 1, 0)
        if self._fresh_iterators:
            self._commit(backup, offset=0)
        else:
            # Where the next epoch starts to read is seen at its first step.
            self._uncommitted = backup

    def on_train_end(self, logs=None):
        self.model._initial_epoch = self._initial_epoch_before
        self._iterator = None
        self._backup = None
        self._uncommitted = None
        if not self._writes:
            return
        if self.delete_backup and os.path.isdir(self.backup_dir):
            # The index first: without it there is no backup.
            for name in (INDEX, NEW_INDEX):
                if os.path.exists(self._path(name)):
                    os.remove(self._path(name))
            self._delete_data_files()
            if not os.listdir(self.backup_dir):
                os.rmdir(self.backup_dir)
        else:
            index = self._read_index()
            self._delete_data_files(keep=index["files"] if index else ())

    # Reading the data.

    def _begin_reading(self, iterator):
        """Finds out where in its iterator the epoch begins."""
        self._epoch_is_new = False
        if self._iterator is None:
            if self._backup is not None:
                self._offset = self._backup["offset"]
                self._drop(iterator, self._offset)
                self._was_fast_forwarded = self._offset > 0
        elif iterator is self._iterator:
            self._fresh_iterators = False
        else:
            self._offset = 0
            self._was_fast_forwarded = False
            # An iterator that was shared once is replaced when it runs out of
            # data; one that is replaced after the first epoch always is.
            if self._fresh_iterators is None:
                self._fresh_iterators = True
        self._iterator = iterator
        self._epoch_start, self._uncommitted = self._uncommitted, None
        if self._epoch_start is not None:
            self._commit(self._epoch_start, self._offset)

    def _skip(self, iterator, train_function):
        """Stands in for a step on batches that the killed run has seen."""
        num_batches = self.model.steps_per_execution
        is_last = self._batch + num_batches >= self._skip_to
        if is_last and self._backup["metrics"] != signature(
            self.model.metrics_variables
        ):
            # The metrics are not built: `_restore` undoes the rest.
            train_function(iterator)
        elif self._drop(iterator, num_batches, may_end=True) == 0:
            raise self._out_of_data()
        return dict(self._backup["logs"])

    def _drop(self, iterator, num_batches, may_end=False):
        """Reads batches and returns how many there were."""
        for num_read in range(num_batches):
            try:
                next(iterator)
            except StopIteration:
                if may_end:
                    return num_read
                raise self._out_of_data() from None
        return num_batches

    def _out_of_data(self):
        return ValueError(
            "The data must be the same as in the run that was killed. "
            f"Received: data that end before batch {self._backup['batch']} of "
            f"epoch {self._backup['epoch']}, where the backup in "
            f"'{self.backup_dir}' was written ({self._backup['offset']} "
            "batches of the same iterator before that epoch). Call `fit` with "
            "the same data, or delete the directory to start anew."
        )

    def _say_that_fit_lost_count(self, error):
        """Raises where the killed run would have begun the data anew.

        `fit` does that when it has handed out as many batches as there are,
        and it does not know of those before the epoch of the backup.
        """
        if self._epoch_start is None:
            return
        self._commit(self._epoch_start, offset=0)
        raise RuntimeError(
            "The data must not end with an epoch in a resumed run, which "
            f"cannot begin them anew. Received: {self._offset} batches until "
            f"the end of epoch {self._epoch - 1}. Start the same script again: "
            f"the backup in '{self.backup_dir}' now begins epoch "
            f"{self._epoch} at the first batch of the data."
        ) from error

    # Reading and writing the backup.

    def _path(self, name):
        return os.path.join(self.backup_dir, name)

    def _data_files(self):
        if not os.path.isdir(self.backup_dir):
            return []
        return [
            name
            for name in os.listdir(self.backup_dir)
            if DATA_FILE.fullmatch(name)
        ]

    def _read_index(self):
        try:
            with open(self._path(INDEX), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def _write(self, epoch, batch, logs=None):
        """Writes a backup under new names; `_commit` puts it in force."""
        last_number = max(
            (int(DATA_FILE.fullmatch(f).group(1)) for f in self._data_files()),
            default=0,
        )
        name = f"backup-{last_number + 1}"
        files = [f"{name}.weights.h5", f"{name}.npz"]
        # Between two epochs there are no metrics: `fit` resets them.
        metrics = self.model.metrics_variables if batch else []
        if self._writes:
            os.makedirs(self.backup_dir, exist_ok=True)
            self._write_files(self.backup_dir, files, metrics)
        else:
            # To read a variable may take all workers, as for those of metrics.
            with tempfile.TemporaryDirectory() as directory:
                self._write_files(directory, files, metrics)
        return {
            "files": files,
            "epoch": epoch,
            "batch": batch,
            "logs": as_floats(logs or {}),
            "metrics": signature(metrics),
            **self._run_signature(),
        }

    def _write_files(self, directory, files, metrics):
        weights_file, state_file = (os.path.join(directory, f) for f in files)
        self.model.save_weights(weights_file)
        variables = unsaved_variables(self.model) + metrics
        np.savez(state_file, *[variable.numpy() for variable in variables])

    def _run_signature(self):
        """What must be the same in the run that resumes."""
        steps, optimizer = self.params["steps"], self.model.optimizer
        return {
            "model": signature(self.model.variables),
            "optimizer": signature(optimizer.variables if optimizer else []),
            "steps_per_execution": int(self.model.steps_per_execution),
            "steps": None if steps is None else int(steps),
        }

    def _commit(self, backup, offset):
        """Puts a backup in force, atomically, and deletes the one before."""
        if not self._writes:
            return
        backup["offset"] = offset
        backup["fresh_iterators"] = self._fresh_iterators
        with open(self._path(NEW_INDEX), "w", encoding="utf-8") as file:
            json.dump(backup, file)
        os.replace(self._path(NEW_INDEX), self._path(INDEX))
        self._delete_data_files(keep=backup["files"])

    def _delete_data_files(self, keep=()):
        for name in self._data_files():
            if name not in keep:
                os.remove(self._path(name))

    def _check_backup(self):
        written_by = self._backup
        found_in = f"the backup in '{self.backup_dir}'"
        way_out = (
            "Run the script that wrote the backup, or delete the directory to "
            "start anew."
        )
        for part, here in self._run_signature().items():
            there = written_by[part]
            if here == there:
                continue
            if part in ("model", "optimizer"):
                here, there = difference(here, there)
                part = f"variables of the {part}"
            raise ValueError(
                f"The {part} must be the same as in the run that was killed. "
                f"Received: {here}, and {there} in {found_in}. {way_out}"
            )
        if written_by["epoch"] > self.params["epochs"]:
            raise ValueError(
                "`fit` must have as many epochs as the run that was killed. "
                f"Received: epochs={self.params['epochs']}, and epoch "
                f"{written_by['epoch']} in {found_in}. Give every `fit` of a "
                "script its own directory. " + way_out
            )

    def _restore(self, metrics=False):
        """Assigns the backup; the metrics too if the epoch is running."""
        weights_file, state_file = map(self._path, self._backup["files"])
        with warnings.catch_warnings():
            # Of optimizers that the model keeps beside `model.optimizer`.
            warnings.filterwarnings(
                "error", message="Skipping variable loading for optimizer"
            )
            self.model.load_weights(weights_file)
        variables = unsaved_variables(self.model)
        if metrics:
            metrics_variables = self.model.metrics_variables
            here, there = signature(metrics_variables), self._backup["metrics"]
            if here != there:
                here, there = difference(here, there)
                raise ValueError(
                    "The variables of the metrics must be the same as in the "
                    f"run that was killed. Received: {here}, and {there} in "
                    f"the backup in '{self.backup_dir}'. Compile the model "
                    "with the same metrics, or delete the directory to start "
                    "anew."
                )
            variables = variables + metrics_variables
        with np.load(state_file) as state:
            for number, variable in enumerate(variables):
                value = state[f"arr_{number}"]
                if value.dtype.kind == "V":  # bfloat16, which npz cannot name
                    value = value.view(variable.numpy().dtype)
                variable.assign(value)


def is_out_of_data(error):
    """Also of `tf.errors`, by name: only the backend imports a framework."""
    return (
        isinstance(error, StopIteration)
        or type(error).__name__ == "OutOfRangeError"
    )


def as_floats(logs):
    """Logs for JSON, without what is not a number."""
    floats = {}
    for key, value in logs.items():
        try:
            floats[key] = float(value)
        except (TypeError, ValueError):
            continue
    return floats


def unsaved_variables(model):
    """Variables of a model that Keras does not save: random states."""
    saved = {id(variable) for variable in model.weights}
    return [v for v in model.variables if id(v) not in saved]


def signature(variables):
    """Shapes and dtypes in order. Names differ from one build to the next."""
    return [
        f"shape {tuple(variable.shape)} and dtype {variable.dtype}"
        for variable in variables
    ]


def difference(here, there):
    """Two different signatures in words, at the first place they differ."""
    if len(here) != len(there):
        return f"{len(here)} variables", f"{len(there)} variables"
    number = next(
        i
        for i, pair in enumerate(zip(here, there, strict=True))
        if pair[0] != pair[1]
    )
    return f"{here[number]} for number {number}", there[number]
