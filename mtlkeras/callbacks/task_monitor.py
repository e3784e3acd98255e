import csv

import keras
import numpy as np
from keras import ops

from mtlkeras.backend.tensorflow import ScalarWriter


class TaskMonitor(keras.callbacks.Callback):
    """Measures how the gradients of tasks get along while `fit` runs.

    In the first batch of every epoch and in each `every`-th after it the
    gradient of every task is taken on the batch that is just being trained,
    at the weights before its first update. With `g_i` the gradient of the loss
    of task `i` (times its loss weight, without the balancer's) by the shared
    variables, the logs of an epoch, and so the history, get the means of

    - `cosine/<a>/<b>`: `<g_a, g_b> / (||g_a|| ||g_b||)`; tasks conflict below
      0. `plot.conflicts` draws it;
    - `magnitude_similarity/<a>/<b>`:
      `2 ||g_a|| ||g_b|| / (||g_a||^2 + ||g_b||^2)`, 1 for equal lengths and
      near 0 where one task drowns the other;
    - `gradient_norm/<task>`: `||g_i||`;

    and

    - `task_weight/<task>`: what the balancer last multiplied its loss by; 1
      without balancer;
    - `motion_share/<task>`: its share in the motion of the shared variables,
      which is balanced at `1 / num_tasks`. Left out with an aggregator, which
      joins gradients so that no part of the motion is one task's.

    Where every task has updates of its own (`alternating`, `multi_adaptive`,
    `round_robin`, `sampled`), the share is measured and not inferred from
    gradients: the squared lengths of its updates over those of all, whatever
    the optimizer makes of gradients. Within a group of several tasks no update
    is one task's; there the group's motion is split by the squares of their
    weighted gradients, which is exact for SGD without momentum. So it is with
    `joint`, and with groups that are drawn anew.

    Choose it to find out whether tasks conflict or drown each other before you
    choose a strategy, an aggregator or a balancer. A measurement costs a
    forward pass and a backward pass per task. Training is the same, bit for
    bit, as without it.

    A value is NaN where it has no meaning: for tasks without labels in the
    measured batches, for gradients that are not finite, and for angles to a
    gradient of 0.

    Args:
        every: Positive integer, how many batches lie between measurements.
            Defaults to `100`.
        filename: String, a CSV file with a row for every measurement. Defaults
            to `None`: no file.
        log_dir: String, a folder for TensorBoard, where every measurement is a
            point. Defaults to `None`: no events. (The stock callback
            `TensorBoard` writes the epochs' means, if it comes after this
            one.)

    Raises:
        ValueError: If `every` is not as above; in `fit`, for a model without
            shared variables, on several replicas, or with a `compute_loss` of
            its own.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {name: keras.layers.Dense(1)(trunk) for name in ("left", "right")},
    ... )
    >>> model.compile("sgd", {"left": "mse", "right": "mse"})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> history = model.fit(
    ...     x, {"left": y, "right": y}, epochs=2, verbose=0,
    ...     callbacks=[mtlkeras.callbacks.TaskMonitor()])
    >>> [key for key in history.history if "/" in key][:2]
    ['cosine/left/right', 'magnitude_similarity/left/right']

    References:
        - Magnitude similarity: [Yu et al., 2020](
          https://arxiv.org/abs/2001.06782)
        - Shares in the motion: the idea is that of [Yang et al., 2023](
          https://arxiv.org/abs/2211.15055), who take a running mean of squared
          updates per weight. Here they are summed over all shared weights and
          over the measurements of an epoch. Their decay was not seen, so the
          numbers are not theirs.
    """

    def __init__(self, every=100, filename=None, log_dir=None):
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(
                "Argument `every` must be a positive integer. Received: "
                f"every={every!r}"
            )
        self.every = every
        self.filename = filename
        self.log_dir = log_dir

    # -- when -----------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._check_model()
        self._measured = self.model._measure_tasks(self.every)
        self._epoch = 0
        self._moved_before_row = self._moved()
        self._file = self._csv = self._writer = None
        if self.filename is not None:
            self._file = open(self.filename, "w", newline="")
        if self.log_dir is not None:
            self._writer = ScalarWriter(str(self.log_dir))

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._trained, self._first = 0, None
        self._measured.wait.assign(0)
        self._means = Means()
        self._squares = np.zeros(len(self.model.task_names))
        self._moved_before_epoch = self._moved()

    def on_train_batch_begin(self, batch, logs=None):
        if self._first is None:  # not 0 in a resumed epoch
            self._first = batch

    # With `steps_per_execution` this comes after several batches, of which the
    # last measurement is left.
    def on_train_batch_end(self, batch, logs=None):
        before, self._trained = self._trained, batch + 1 - self._first
        last = (self._trained - 1) // self.every
        if last > (before - 1) // self.every:
            self._take()

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or self._first is None:
            return
        moved = self._moved() - self._moved_before_epoch
        shares = self._shares(moved, self._squares)
        logs.update(self._named(*self._means.result(), shares))

    def on_train_end(self, logs=None):
        self.model._measure_tasks(None)
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _check_model(self):
        if not hasattr(self.model, "_multi_task"):
            raise ValueError(
                "`TaskMonitor` needs a `mtlkeras.MultiTaskModel`. Received: "
                f"model={self.model!r}"
            )
        if self.model._multi_task.structure is None:
            raise ValueError(
                "`TaskMonitor` needs to know the tasks when training begins. "
                "Received: a subclassed model that has not seen data. Call it "
                "on a batch first, e.g. `model.evaluate(x, y)`."
            )
        if not self.model.shared_variables:
            raise ValueError(
                "`TaskMonitor` measures gradients of the variables that tasks "
                "share. Received: a model with the tasks "
                f"{list(self.model.task_names)}, which share none."
            )

    # -- what -----------------------------------------------------------------

    def _take(self):
        """Takes note of a measurement."""
        gramian = ops.convert_to_numpy(self._measured.gramian)
        norms = np.sqrt(np.diag(gramian))
        cosines, similarities = angles_and_ratios(gramian, norms)
        self._means.add(cosines, similarities, norms)
        # A task that is not known here has not moved anything.
        squares = np.nan_to_num(norms * self._weights()) ** 2
        self._squares = self._squares + squares
        if self._file is None and self._writer is None:
            return
        before = self._moved_before_row
        self._moved_before_row = self._moved()
        shares = self._shares(self._moved_before_row - before, squares)
        self._write(self._named(cosines, similarities, norms, shares))

    def _moved(self):
        """Sum of the squared updates of every group so far."""
        return ops.convert_to_numpy(self._measured.motion).copy()

    def _weights(self):
        balancer = self.model.balancer
        weights = None if balancer is None else balancer.last_task_weights
        if weights is None:
            return np.ones(len(self.model.task_names))
        return weights

    def _shares(self, moved, squares):
        """Shares of the tasks in the motion.

        Args:
            moved: Sum of the squared updates of every group.
            squares: Sum of the squared weighted gradients of every task.
        """
        names, groups = self.model.task_names, self._measured.groups
        if len(groups) == 1:
            return divide(squares, squares.sum())
        shares = np.zeros(len(names))
        for group, part in zip(groups, divide(moved, moved.sum()), strict=True):
            members = [names.index(name) for name in group]
            inside = np.ones(1)
            if len(members) > 1 and part > 0:
                inside = divide(squares[members], squares[members].sum())
            shares[members] = part * inside
        return shares

    def _named(self, cosines, similarities, norms, shares):
        """Dict of the logs."""
        names = self.model.task_names
        pairs = [
            (a, b) for a in range(len(names)) for b in range(a + 1, len(names))
        ]
        found = {}
        for key, table in (
            ("cosine", cosines),
            ("magnitude_similarity", similarities),
        ):
            for a, b in pairs:
                found[f"{key}/{names[a]}/{names[b]}"] = float(table[a, b])
        by_task = {"gradient_norm": norms, "task_weight": self._weights()}
        if self.model.aggregator is None:
            by_task["motion_share"] = shares
        for key, values in by_task.items():
            for name, value in zip(names, values, strict=True):
                found[f"{key}/{name}"] = float(value)
        return found

    def _write(self, values):
        step = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        if self._writer is not None:
            self._writer.write(values, step)
        if self._file is None:
            return
        row = {"epoch": self._epoch, "step": step, **values}
        if self._csv is None:
            self._csv = csv.DictWriter(self._file, list(row))
            self._csv.writeheader()
        self._csv.writerow(row)
        self._file.flush()


class Means:
    """Means of tables over measurements, of what is not NaN."""

    def __init__(self):
        self._sums = self._counts = None

    def add(self, *tables):
        sums = [np.nan_to_num(table) for table in tables]
        counts = [np.isfinite(table).astype(int) for table in tables]
        if self._sums is not None:
            sums = map(np.add, self._sums, sums)
            counts = map(np.add, self._counts, counts)
        self._sums, self._counts = list(sums), list(counts)

    def result(self):
        return list(map(divide, self._sums, self._counts))


def angles_and_ratios(gramian, norms):
    """Cosines and magnitude similarities, `[num_tasks, num_tasks]` each."""
    # One after the other: the product of two lengths may underflow.
    cosines = divide(divide(gramian, norms[:, None]), norms[None, :])
    ratio = divide(norms[:, None], norms[None, :])
    # 2 a b / (a^2 + b^2) by the ratio a / b, whose square is in range.
    return np.clip(cosines, -1, 1), divide(2.0, ratio + divide(1.0, ratio))


def divide(first, second):
    """The quotient; NaN for a divisor of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(second, 0), np.nan, np.divide(first, second))
