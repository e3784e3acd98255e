import keras
from keras import ops

# The class that Keras itself puts around a loss function; it has no public
# name, and using it keeps the bits that Keras computes.
LossFunctionWrapper = keras.losses.MeanSquaredError.__bases__[0]


@keras.saving.register_keras_serializable("mtlkeras")
class MaskedLoss(keras.losses.Loss):
    """The mean of a loss over the labelled entries of a batch.

    Real multi-task data are partly labelled. An entry (a row, or a pixel of a
    loss that is reduced over pixels) is left out where its target is NaN or
    equals `missing`:

    ```
    loss = sum(labelled entries of the loss) / number of labelled entries
    ```

    With no labelled entry the loss is 0, and unlabelled entries get gradient
    0. `MultiTaskModel` treats NaN targets in this way for every loss without
    being asked; use this class where missing labels are coded by a number, as
    `-1` for integer classes. Sample weights keep Keras's meaning. The
    reduction is that of the wrapped loss: `"sum"` adds the labelled entries.

    Args:
        loss: A `keras.losses.Loss`, a loss function or a Keras loss id.
        missing: Number that codes a missing label, besides NaN. Defaults to
            NaN (nothing else).
        name: String. Defaults to the name of the wrapped loss.

    Raises:
        ValueError: If the wrapped loss has `reduction=None`: a task's loss has
            to be a scalar.

    Example:

    >>> loss = MaskedLoss("mean_squared_error", missing=-1)
    >>> float(loss(np.array([[1.0], [-1.0]]), np.array([[3.0], [9.0]])))
    4.0
    """

    def __init__(self, loss, missing=float("nan"), name=None):
        loss = wrap_loss(loss)
        if loss.reduction in (None, "none"):
            raise ValueError(
                "The loss of a task must reduce to a scalar, so its "
                "`reduction` must not be `None`. Received: "
                f"loss={loss.name} with reduction={loss.reduction!r}. Use "
                "`reduction='sum_over_batch_size'`, the default of Keras."
            )
        super().__init__(
            name=name or loss.name, reduction=loss.reduction, dtype=loss.dtype
        )
        self.loss = loss
        self.missing = float(missing)

    def labelled(self, y_true):
        """Which entries of the target are labelled.

        Returns:
            A boolean tensor of the target's shape, or `None` where the dtype
            of the target rules out that one is missing.
        """
        dtype = keras.backend.standardize_dtype(y_true.dtype)
        codes_number = self.missing == self.missing
        is_float = "float" in dtype
        if not codes_number and not is_float:
            return None
        labelled = None
        if is_float:
            labelled = ops.logical_not(ops.isnan(y_true))
        if codes_number:
            coded = ops.not_equal(y_true, ops.cast(self.missing, dtype))
            labelled = (
                coded if labelled is None else ops.logical_and(labelled, coded)
            )
        return labelled

    def can_mask(self):
        """A loss that reduces in a `__call__` of its own cannot be masked."""
        return type(self.loss).call is not keras.losses.Loss.call

    def takes_entry_weights(self):
        """Whether the loss has one value per prediction, as Keras's have."""
        return type(self.loss).__module__.partition(".")[0] == "keras"

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true = ops.convert_to_tensor(y_true)
        if not self.can_mask() or self.labelled(y_true) is None:
            return self.loss(y_true, y_pred, sample_weight)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        labelled = self.labelled(y_true)
        # Replaced before the loss: a NaN behind a mask still spoils gradients.
        y_true = ops.where(labelled, y_true, ops.zeros_like(y_true))
        values = self.loss.call(y_true, y_pred)
        entries = reduce_to_entries(labelled, len(values.shape))
        # Keras reads this attribute of a loss's values: it means the values
        # over the unmasked entries, which is what we promise.
        values._keras_mask = entries
        return values

    def get_config(self):
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "missing": self.missing,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["loss"] = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**config)


def wrap_loss(loss):
    """A `keras.losses.Loss` from what `compile(loss=...)` accepts."""
    found = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss):
        return found
    if not callable(found):
        raise ValueError(
            "A loss must be a `keras.losses.Loss`, a function of (y_true, "
            f"y_pred) or a Keras loss id. Received: loss={loss!r}"
        )
    name = loss if isinstance(loss, str) else found.__name__
    return LossFunctionWrapper(found, name=name)


def reduce_to_entries(labelled, rank):
    """Labelled target elements -> labelled loss entries of the given rank."""
    extra = len(labelled.shape) - rank
    if extra > 0:
        axes = tuple(range(rank, rank + extra))
        labelled = ops.all(labelled, axis=axes)
    for _ in range(-extra):
        labelled = ops.expand_dims(labelled, -1)
    return labelled
