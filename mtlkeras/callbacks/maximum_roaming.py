import keras

from mtlkeras.layers.roaming_mask import RoamingMask


class MaximumRoaming(keras.callbacks.Callback):
    """Lets the units that each task uses roam over all units.

    Every `period`, each `RoamingMask` of the model makes one update with its
    own randomness: every task takes up one unit that it never had and gives
    up one of those it has. So each task serves every unit for one uninterrupted
    while, of `period` at least, and the share of units that tasks have in
    common stays about what it was. When a layer's units were all visited
    (after `S - K` updates, for `K` of `S` units), its masks are final.

    Choose it with `MultiTaskModel.with_roaming` as a regularizer between hard
    sharing and separate networks: tasks interfere less, and still each unit
    learns from all of them. Without it, or with `update_ratio=0`, the masks
    stay what they are: task routing, the ablation.

    It has no state; masks and counters are in the layers and are saved with
    the model, so a resumed run goes on with them. List it before callbacks
    that save the model.

    Args:
        period: `"epoch"`: an update at the end of every epoch but the first
            (the authors on NYUv2 and Cityscapes). An integer: after every so
            many batches (the authors on CelebA: a tenth of an epoch).
            Defaults to `"epoch"`.
        update_ratio: Float from 0 to 1. Masks are final after this share of
            their updates. Defaults to `1.0`.
        finish_by: Integer or `None`, in place of `period`: every layer has a
            period of its own, such that all of them are final about this many
            batches after the beginning. Defaults to `None`.

    Raises:
        ValueError: For arguments that are not as above, and in `fit` for a
            model without a `RoamingMask`.

    Example:

    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(10)(inputs)
    >>> x = mtlkeras.layers.RoamingMask(2, sharing_ratio=0.8)(x)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {name: keras.layers.Dense(1)(x) for name in ("left", "right")},
    ... )
    >>> model.compile("sgd", {"left": "mse", "right": "mse"})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> roaming = mtlkeras.callbacks.MaximumRoaming(period=1)
    >>> history = model.fit(
    ...     x, {"left": y, "right": y}, batch_size=2, verbose=0,
    ...     callbacks=[roaming])
    >>> roaming.updates  # two of the ten units were not used at first
    {'roaming_mask': 2}

    Departures: the end of an epoch is where `fit` has it; the authors count
    iterations. Batches are counted by `model.optimizer.iterations`.

    References:
        - [Pascal et al., 2021](https://arxiv.org/abs/2006.09762)
    """

    def __init__(self, period="epoch", update_ratio=1.0, finish_by=None):
        super().__init__()
        if period != "epoch" and not is_positive_integer(period):
            raise ValueError(
                "Argument `period` must be 'epoch' or a positive integer, a "
                f"number of batches. Received: period={period!r}"
            )
        if not 0 <= update_ratio <= 1:
            raise ValueError(
                "Argument `update_ratio` must be from 0 to 1. Received: "
                f"update_ratio={update_ratio!r}"
            )
        if finish_by is not None and not is_positive_integer(finish_by):
            raise ValueError(
                "Argument `finish_by` must be a positive integer, a number of "
                f"batches, or `None`. Received: finish_by={finish_by!r}"
            )
        if finish_by is not None and period != "epoch":
            raise ValueError(
                "`finish_by` says how long all of it takes and sets the period "
                f"of each layer. Received: finish_by={finish_by!r} with "
                f"period={period!r}. Pass one of them."
            )
        self.period = period
        self.update_ratio = update_ratio
        self.finish_by = finish_by

    @property
    def masks(self):
        """The `RoamingMask` layers of the model."""
        return [
            layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, RoamingMask)
        ]

    @property
    def updates(self):
        """Dict from the name of each `RoamingMask` to its number of updates."""
        return {mask.name: as_int(mask.updates) for mask in self.masks}

    def on_train_begin(self, logs=None):
        if not self.masks:
            raise ValueError(
                "`MaximumRoaming` needs layers of the kind `RoamingMask` in "
                "the model. Put them behind the shared layers, or make the "
                "model with `MultiTaskModel.with_roaming(model)`."
            )

    def on_epoch_end(self, epoch, logs=None):
        if self.period == "epoch" and self.finish_by is None and epoch > 0:
            for mask in self.masks:
                mask.roam(self.update_ratio)

    def on_train_batch_end(self, batch, logs=None):
        if self.period == "epoch" and self.finish_by is None:
            return
        step = as_int(self.model.optimizer.iterations)
        for mask in self.masks:
            last, period = as_int(mask.last_step), self._period_of(mask)
            # An execution may hold several batches; and batches that a resumed
            # run has seen before are reported once more.
            if step // period > last // period:
                mask.roam(self.update_ratio)
            if step > last:
                mask.last_step.assign(step)

    def _period_of(self, mask):
        if self.finish_by is None:
            return self.period
        count = round(self.update_ratio * mask.max_updates)
        return max(self.finish_by // max(count, 1), 1)


def as_int(variable):
    # A variable of several replicas is no number for Python.
    return int(keras.ops.convert_to_numpy(variable))


def is_positive_integer(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
