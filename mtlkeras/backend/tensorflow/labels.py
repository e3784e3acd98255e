import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.replicas import (
    any_replica,
    num_replicas,
    sum_over_replicas,
)
from mtlkeras.losses.masked_loss import reduce_to_entries


class Labels:
    """What of a batch is labelled, for all tasks.

    NaN targets are looked for in a few operations on the stacked targets of
    all tasks of one shape: one by one, forty tasks cost as much as their
    losses.

    Args:
        tasks: The model's `TaskSet`.
        targets: Dict from output name to its target.
        weights: Dict from output name to its sample weights or `None`.
        ranks: Dict from task to the rank of its prediction.

    Attributes (dicts from task):
        targets: Targets with 0 in place of what is missing.
        entries: Weights 1 and 0 for labelled and missing entries of the
            prediction, or `None` where nothing can be missing.
        loss_weights: Sample weights that make Keras's loss the mean over the
            labelled entries, or the user's.
        labelled: Whether there is a labelled entry of non-zero weight; `True`
            where nothing can be missing.
        fractions: Labelled fraction of the entries, or `None`.
    """

    def __init__(self, tasks, targets, weights, ranks):
        self.tasks = tasks
        self.given = dict(targets)
        self.given_weights = dict(weights)
        self.targets = dict(targets)
        self.entries = dict.fromkeys(tasks.names)
        self.loss_weights = dict(weights)
        self.labelled = dict.fromkeys(tasks.names, True)
        self.fractions = dict.fromkeys(tasks.names)
        self._scales = {}  # task -> size / count of its entries
        alike = {}
        for name in tasks.names:
            self.targets[name] = target = tf.convert_to_tensor(targets[name])
            if self._may_be_missing(name, target):
                key = (tuple(target.shape), target.dtype, ranks[name])
                loss = tasks.losses[name]
                missing = loss.missing if loss is not None else float("nan")
                key += (missing if missing == missing else None,)
                alike.setdefault(key, []).append(name)
        for (_, _, rank, missing), names in alike.items():
            self._find_missing(names, rank, missing)
        for name in tasks.names:
            if weights[name] is not None:
                self._weigh(name, weights[name])

    def _may_be_missing(self, name, target):
        loss = self.tasks.losses[name]
        if loss is None:
            return target.dtype.is_floating
        return loss.can_mask() and loss.labelled(target) is not None

    def _find_missing(self, names, rank, code):
        stacked = tf.stack([self.targets[name] for name in names])
        missing = None
        if stacked.dtype.is_floating:
            missing = tf.math.is_nan(stacked)
        if code is not None:
            coded = tf.equal(stacked, tf.cast(code, stacked.dtype))
            missing = coded if missing is None else missing | coded
        clean = tf.where(missing, tf.zeros([], stacked.dtype), stacked)
        # The leading axis is that of the tasks.
        labelled = reduce_to_entries(~missing, max(rank - 1, 1) + 1)
        floatx = keras.backend.floatx()
        entries = tf.cast(labelled, floatx)
        axes = list(range(1, len(entries.shape)))
        count = sum_over_replicas(tf.reduce_sum(entries, axes))  # [tasks]
        size = tf.cast(tf.size(entries[0]), floatx)
        # Keras divides by the entries here and by the number of replicas.
        scale = tf.math.divide_no_nan(size * num_replicas(), count)
        size = sum_over_replicas(size)
        self._scales.update(zip(names, tf.unstack(scale), strict=True))
        scale = tf.reshape(scale, [-1] + [1] * len(axes))
        weights = entries * scale
        values = zip(
            names,
            tf.unstack(clean),
            tf.unstack(entries),
            tf.unstack(weights),
            tf.unstack(count > 0),
            tf.unstack(count / size),
            strict=True,
        )
        for name, target, entry, weight, any_labelled, fraction in values:
            self.targets[name] = target
            self.entries[name] = entry
            if self._divides_by_size(name):
                self.loss_weights[name] = weight
            else:
                self.loss_weights[name] = entry
            self.labelled[name] = any_labelled
            self.fractions[name] = fraction

    def _divides_by_size(self, name):
        loss = self.tasks.losses[name]
        reduction = "sum_over_batch_size" if loss is None else loss.reduction
        return reduction in ("sum_over_batch_size", "mean")

    def _weigh(self, name, given):
        """Lets the user's sample weights have their say."""
        given = tf.convert_to_tensor(given)
        entries = self.entries[name]
        if entries is None:
            self.labelled[name] = any_replica(
                tf.reduce_any(tf.not_equal(given, 0))
            )
            return
        given = tf.cast(given, entries.dtype)
        if len(given.shape) == len(entries.shape) + 1:
            given = tf.squeeze(given, -1)
        for _ in range(len(entries.shape) - len(given.shape)):
            given = tf.expand_dims(given, -1)
        self.loss_weights[name] = self.loss_weights[name] * given
        self.labelled[name] = any_replica(
            tf.reduce_any(tf.not_equal(entries * given, 0))
        )

    def loss(self, name, prediction, target=None):
        """The task's loss on the batch, over its labelled entries."""
        loss = self.tasks.resolve(name, self.targets[name], prediction)
        if target is None:
            target = self.targets[name]
        if self.entries[name] is not None and not loss.takes_entry_weights():
            # Its values have a shape of their own, so it masks itself.
            value = loss(self.given[name], prediction, self.given_weights[name])
        else:
            weights = self._weights_under_mask(name, prediction)
            value = loss.loss(target, prediction, weights)
        return self.tasks.as_scalar(name, value)

    def _weights_under_mask(self, name, prediction):
        """Sample weights for the mean over labelled and unmasked entries.

        Keras weighs what its mask (of `Masking`, `Embedding`) leaves by all
        through unmasked entries. The number of unmasked ones that are labelled
        is no product of two fractions: it has to be counted.
        """
        weights, entries = self.loss_weights[name], self.entries[name]
        mask = getattr(prediction, "_keras_mask", None)
        if mask is None or entries is None or not self._divides_by_size(name):
            return weights
        if len(mask.shape) != len(entries.shape):
            return weights
        # Each replica by itself, as Keras has it for masks: within a branch
        # replicas cannot exchange what they count.
        mask = tf.cast(mask, entries.dtype)
        counted = tf.reduce_sum(mask * entries)
        return weights * tf.math.divide_no_nan(
            tf.reduce_sum(mask), counted * self._scales[name]
        )
