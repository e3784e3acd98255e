import keras

from mtlkeras.metrics.delta_m import check_directions, check_groups, delta_m


class DeltaM(keras.callbacks.Callback):
    """Adds `delta_m` and `val_delta_m` to the logs of every epoch.

    One number for how a multi-task model stands against its baselines, so that
    training can be stopped, saved or tuned by it: the mean relative gain in
    percent, negative where the model is better; see `metrics.delta_m`. It
    combines results of several metrics, so it is no `keras.metrics.Metric`,
    which sees the predictions of one output.

    Put it before the callbacks that read it: callbacks run in the order of
    their list. `History` and the progress bar always come last.

    Args:
        baselines: Dict from a key of the training logs, such as
            `"left_accuracy"` (without `val_`), to its baseline.
        higher_is_better: Dict from the same keys to booleans, or one boolean
            for all.
        groups: Dict from task to the list of its keys, to let every task weigh
            the same. Defaults to `None`: every key weighs the same.
        name: String, the key in the logs. Defaults to `"delta_m"`.

    Raises:
        ValueError: If an argument is not as above; at the end of the first
            epoch, if a key is not in the logs.

    Example:

    >>> inputs = keras.Input((4,))
    >>> outputs = {
    ...     "left": keras.layers.Dense(1)(inputs),
    ...     "right": keras.layers.Dense(1)(inputs),
    ... }
    >>> model = mtlkeras.MultiTaskModel(inputs, outputs)
    >>> model.compile("adam", loss={"left": "mse", "right": "mse"})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> data = (x, {"left": y, "right": y})
    >>> callbacks = [
    ...     mtlkeras.callbacks.DeltaM(
    ...         {"left_loss": 0.5, "right_loss": 0.2}, higher_is_better=False
    ...     ),
    ...     keras.callbacks.EarlyStopping(
    ...         "val_delta_m", mode="min", patience=3
    ...     ),
    ... ]
    >>> history = model.fit(
    ...     *data, validation_data=data, callbacks=callbacks, verbose=0
    ... )
    >>> "val_delta_m" in history.history
    True
    """

    def __init__(
        self, baselines, higher_is_better, groups=None, name="delta_m"
    ):
        super().__init__()
        if not isinstance(baselines, dict):
            raise ValueError(
                "Argument `baselines` must be a dict from keys of the logs to "
                f"numbers. Received: baselines={baselines!r}"
            )
        # Fails here and not after the first epoch.
        delta_m(baselines, baselines, higher_is_better, groups)
        self.baselines = baselines
        self.higher_is_better = check_directions(higher_is_better, baselines)
        self.groups = (
            None if groups is None else check_groups(groups, baselines)
        )
        self.name = name

    def on_epoch_end(self, epoch, logs=None):
        self._add(logs, "")
        # Not in every epoch, with `validation_freq`.
        if any(key.startswith("val_") for key in logs):
            self._add(logs, "val_")

    def _add(self, logs, prefix):
        missing = [
            prefix + key for key in self.baselines if prefix + key not in logs
        ]
        if missing:
            raise ValueError(
                "The keys of `baselines` must be keys of the training logs. "
                f"Received: {missing}, while the logs of this epoch have "
                f"{sorted(logs)}. Name metrics as the logs do, without `val_`."
            )
        values = {key: logs[prefix + key] for key in self.baselines}
        logs[prefix + self.name] = delta_m(
            values, self.baselines, self.higher_is_better, self.groups
        )
