import warnings

import keras


class TaskReporter(keras.callbacks.Callback):
    """Tells what happened to tasks in an epoch; `fit` adds it by itself.

    Reads the counters that the training step keeps in the model: one warning
    per epoch names the tasks that were skipped for a loss or gradient that was
    not finite, and one the tasks that had no label at all. With
    `on_nonfinite="raise"` it raises after the batch instead. It has no state.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self.model._reset_counters()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        self.model._raise_if_skipped()

    def on_epoch_end(self, epoch, logs=None):
        if self.batches == 0:
            raise ValueError(
                "The data set given to `fit` must hold at least one batch. "
                "Received an empty one."
            )
        labelled, skipped = self.model._counts()
        never = [name for name, count in labelled.items() if count == 0]
        bad = {name: count for name, count in skipped.items() if count}
        if bad:
            counts = ", ".join(f"'{n}' ({c} times)" for n, c in bad.items())
            warnings.warn(
                f"Epoch {epoch + 1}: updates were skipped because a loss or a "
                f"gradient was not finite, for the tasks: {counts}. Look at "
                "their data and learning rate, or compile with "
                "`on_nonfinite='raise'` to stop at the first one.",
                stacklevel=2,
            )
        if never:
            warnings.warn(
                f"Epoch {epoch + 1}: no batch held a label for the tasks "
                f"{never}, so they were not trained. Check the targets (NaN is "
                "'missing') and the sample weights.",
                stacklevel=2,
            )
        self.model._end_epoch()
