import warnings

import keras


class TaskReporter(keras.callbacks.Callback):
    """Tells what happened to tasks in an epoch; `fit` adds it by itself.

    Reads the counters that the training step keeps in the model: one warning
    per epoch names the tasks that were skipped for a loss or gradient that was
    not finite, and one the tasks that had no label at all. With
    `on_nonfinite="raise"` it raises after the batch instead. It has no state.
    """

    has_trained = False
    batches = 0  # of this epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.batches = 0
        counters = self.model._multi_task.counters
        if counters is not None:
            counters.reset()

    def on_train_batch_end(self, batch, logs=None):
        self.has_trained = True
        self.batches += 1
        finish_batch(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self._tell_balancer(logs or {})
        # Later on Keras warns of data that have run out.
        if not self.has_trained:
            raise ValueError(
                "The data set given to `fit` must hold at least one batch. "
                "Received an empty one."
            )
        counters = self.model._multi_task.counters
        skipped, unlabelled = (
            counters.skipped_tasks(),
            counters.unlabelled_tasks(),
        )
        if skipped:
            times = ", ".join(f"'{n}' ({c} times)" for n, c in skipped.items())
            warnings.warn(
                f"Epoch {epoch + 1}: updates were skipped because a loss or a "
                f"gradient was not finite{_or_not_positive(self.model)}, for "
                f"the tasks: {times}. Look at "
                "their data and learning rate, or compile with "
                "`on_nonfinite='raise'` to stop at the first one.",
                stacklevel=2,
            )
        if unlabelled and self.batches:
            warnings.warn(
                f"Epoch {epoch + 1}: no batch held a label for the tasks "
                f"{unlabelled}, so they were not trained. Check the targets "
                "(NaN is 'missing') and the sample weights.",
                stacklevel=2,
            )
        if self.model._multi_task.strategy.regroups == "epoch":
            self.model.optimizer.draw.assign(self.model.optimizer.iterations)
        self.model._multi_task.strategy.finish_epoch(self.model.optimizer)

    def _tell_balancer(self, logs):
        balancer, names = self.model.balancer, self.model.task_names
        if balancer is None:
            return
        keys = [f"{name}_loss" for name in names] if names[1:] else ["loss"]
        balancer.finish_epoch([logs.get(key, float("nan")) for key in keys])
        if not balancer.log_task_weights:
            return
        weights = balancer.last_task_weights
        for name, weight in zip(names, weights, strict=True):
            logs[f"task_weight/{name}"] = float(weight)


def _or_not_positive(model):
    aggregator = model.aggregator
    if aggregator is None or not aggregator.requires_positive_losses:
        return ""
    name = type(aggregator).__name__
    return f" (or a loss not positive, as {name} needs it)"


def finish_batch(model):
    """What is to be done on the host after a batch.

    Raises:
        FloatingPointError: As `compile(on_nonfinite="raise")` asks for it.
    """
    check_losses(model)
    model._multi_task.strategy.finish_batch(model.optimizer)


def check_losses(model):
    """Raises for losses of the last batch that must not be as they are."""
    if model.balancer is not None:
        model.balancer.raise_if_negative()
    if model._multi_task.on_nonfinite != "raise":
        return
    skipped = list(model._multi_task.counters.skipped_tasks())
    if skipped:
        model._multi_task.counters.reset()
        raise FloatingPointError(
            f"The loss or a gradient of the tasks {skipped} is not finite"
            f"{_or_not_positive(model)}. "
            "Their update was left out, so the weights are still good. Compile "
            "with `on_nonfinite='skip'` to go on without such updates."
        )
