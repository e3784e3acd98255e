import difflib

import keras
from keras import ops

from mtlkeras.losses.masked_loss import MaskedLoss
from mtlkeras.metrics.task_loss import TaskLoss
from mtlkeras.metrics.task_metric import metric_for_shapes
from mtlkeras.metrics.total_loss import TotalLoss


class TaskSet:
    """The tasks of a compiled model: names, losses, weights, structure.

    It stands where Keras keeps its `CompileLoss`: `Trainer.compute_loss` calls
    it for the weighted sum, and `Trainer.metrics` takes the trackers of
    `<task>_loss` from it. Beyond that it gives the loss of a single task, which
    is what a sub-step needs.

    Args:
        loss: As in `keras.Model.compile`.
        loss_weights: As in `keras.Model.compile`.
    """

    def __init__(self, loss, loss_weights):
        self.loss = loss
        self.loss_weights = loss_weights
        self.built = False
        self.names = ()
        self.trackers = {}
        self.total_loss = TotalLoss()
        self.values = {}  # task -> loss, of the last call
        self.labels = None  # the trainer's, while it computes a loss

    def bind(self, outputs, output_names=None):
        """Matches the losses with the model's outputs.

        Args:
            outputs: The structure of outputs: a dict, a list or one tensor.
            output_names: Names of the outputs unless they are a dict.
        """
        if isinstance(outputs, dict):
            names = list(outputs)
        elif isinstance(outputs, (list, tuple)):
            names = list(output_names)
        else:
            names = list(output_names)[:1]
        leaves = (
            list(outputs.values())
            if isinstance(outputs, dict)
            else list(outputs)
            if isinstance(outputs, (list, tuple))
            else [outputs]
        )
        if any(isinstance(leaf, (dict, list, tuple)) for leaf in leaves):
            raise ValueError(
                "The outputs of a MultiTaskModel must be a dict, a list or one "
                "tensor, not nested any further: every output is a task. "
                f"Received outputs: {describe(outputs)}"
            )
        self.structure = (
            "dict"
            if isinstance(outputs, dict)
            else "list"
            if isinstance(outputs, (list, tuple))
            else "single"
        )
        self.output_names = tuple(names)
        losses = self._per_output(self.loss, "loss")
        self.losses = {
            name: None if uses_shapes(given) else as_task_loss(name, given)
            for name, given in losses.items()
            if given is not None
        }
        self._unresolved = {
            name: given for name, given in losses.items() if uses_shapes(given)
        }
        if not self.losses:
            raise ValueError(
                "At least one output needs a loss: an output without one is "
                f"not a task. Received: loss={self.loss!r}"
            )
        weights = self._per_output(self.loss_weights, "loss_weights")
        self.weights = {
            name: None if weights.get(name) is None else float(weights[name])
            for name in self.losses
        }
        # Tasks in the order of the outputs; Keras adds losses up in the order
        # in which the user wrote them, and sums of floats remember it.
        self.names = tuple(n for n in self.output_names if n in self.losses)
        by_user = isinstance(self.loss, dict) and self.structure == "dict"
        self.sum_order = tuple(
            n
            for n in (self.loss if by_user else self.output_names)
            if n in self.losses
        )
        self.total_loss.bind(self.sum_order, self.weights)
        self.trackers = {}
        if len(self.names) > 1:
            self.trackers = {
                name: TaskLoss(self.total_loss, name) for name in self.sum_order
            }
        self.built = True

    def _per_output(self, given, argument):
        """Dict from output name to what the user gave for it."""
        names = self.output_names
        if given is None:
            return {}
        if isinstance(given, dict):
            unknown = [key for key in given if key not in names]
            if unknown:
                raise ValueError(
                    f"The keys of `{argument}` must be outputs of the model, "
                    f"which has the outputs {list(names)}. Received unknown "
                    f"keys: {unknown}"
                )
            return dict(given)
        if isinstance(given, (list, tuple)):
            if len(given) != len(names):
                raise ValueError(
                    f"A list in `{argument}` must have one entry for each of "
                    f"the model's outputs {list(names)}. Received "
                    f"{len(given)} entries: {given!r}"
                )
            return dict(zip(names, given, strict=True))
        if argument == "loss_weights" and len(names) > 1:
            raise ValueError(
                "Argument `loss_weights` must be a dict or a list when the "
                f"model has several outputs. Received: {given!r}"
            )
        return dict.fromkeys(names, given)

    # -- what the trainer asks ------------------------------------------------

    def split(self, given, what):
        """Dict from output name to its part of the targets, or to `None`."""
        names = self.output_names
        if given is None:
            return dict.fromkeys(names)
        if isinstance(given, dict):
            unknown = [key for key in given if key not in names]
            if unknown:
                near = difflib.get_close_matches(str(unknown[0]), names, 1, 0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"The keys of `{what}` must be outputs of the model, which "
                    f"has the outputs {list(names)}. Received unknown keys: "
                    f"{unknown}. Name the outputs as the model does.{hint}"
                )
            return {name: given.get(name) for name in names}
        if isinstance(given, (list, tuple)):
            if len(given) == len(names):
                return dict(zip(names, given, strict=True))
            if what == "y" and len(given) == len(self.names):
                return {
                    **dict.fromkeys(names),
                    **dict(zip(self.names, given, strict=True)),
                }
            raise ValueError(
                f"`{what}` must have one entry for each of the model's outputs "
                f"{list(names)}. Received {len(given)} entries."
            )
        if what == "sample_weight" or len(names) == 1:
            return dict.fromkeys(names, given)
        raise ValueError(
            f"`{what}` must be a dict or a list over the model's outputs "
            f"{list(names)}. Received: {describe(given)}"
        )

    def split_targets(self, y):
        targets = self.split(y, "y")
        missing = [name for name in self.names if targets[name] is None]
        if missing:
            received = list(y) if isinstance(y, dict) else describe(y)
            raise ValueError(
                "Every task needs an entry in `y`. The model has the tasks "
                f"{list(self.names)}. Received: {received}, without "
                f"{missing}. For a task without labels in some batches pass "
                "NaN targets, `mtlkeras.losses.MaskedLoss(loss, missing=-1)` "
                "with that number, or sample weights of 0."
            )
        return targets

    def pack(self, per_output):
        """The model's output structure from a dict over output names."""
        if self.structure == "dict":
            return {name: per_output[name] for name in self.output_names}
        if self.structure == "list":
            return [per_output[name] for name in self.output_names]
        return per_output[self.output_names[0]]

    def resolve(self, name, y_true, y_pred):
        """Settles a loss that depends on shapes, at the first batch."""
        if self.losses[name] is None:
            accuracy = metric_for_shapes("accuracy", y_true, y_pred)
            kind = type(accuracy).__name__.replace("Accuracy", "Crossentropy")
            function = {
                "BinaryCrossentropy": "binary_crossentropy",
                "CategoricalCrossentropy": "categorical_crossentropy",
                "SparseCategoricalCrossentropy": (
                    "sparse_categorical_crossentropy"
                ),
            }[kind]
            self.losses[name] = as_task_loss(name, function)
        return self.losses[name]

    def as_scalar(self, name, value):
        """A task's loss on a batch, unweighted."""
        if len(value.shape) != 0:
            raise ValueError(
                f"The loss of task '{name}' must be a scalar for a batch. "
                f"Received a tensor of shape {tuple(value.shape)}."
            )
        return ops.cast(value, keras.backend.floatx())

    def weighted(self, name, value):
        weight = self.weights[name]
        return value if weight is None else ops.multiply(value, weight)

    # -- what Keras asks where it keeps a CompileLoss -------------------------

    @property
    def metrics(self):
        return list(self.trackers.values())

    @property
    def variables(self):
        return [v for metric in self.metrics for v in metric.variables]

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Weighted sum of the tasks' losses; keeps each in `values`."""
        targets = self.split_targets(y_true)
        predictions = self.split(y_pred, "y_pred")
        weights = self.split(sample_weight, "sample_weight")
        self.values = {}
        terms = []
        for name in self.sum_order:
            target, prediction = targets[name], predictions[name]
            if self.labels is not None and self.labels.given[name] is target:
                value = self.labels.loss(name, prediction)
            else:
                loss = self.resolve(name, target, prediction)
                value = loss(target, prediction, weights[name])
                value = self.as_scalar(name, value)
            self.values[name] = value
            terms.append(self.weighted(name, value))
        return sum(terms)


def uses_shapes(loss):
    """Whether Keras picks this loss by the shapes of targets and outputs."""
    return isinstance(loss, str) and loss.lower() in ("crossentropy", "ce")


def as_task_loss(name, loss):
    try:
        return loss if isinstance(loss, MaskedLoss) else MaskedLoss(loss)
    except ValueError as error:
        raise ValueError(f"Invalid `loss` for output '{name}'. {error}") from (
            error
        )


def describe(structure):
    """A structure with type and shape in place of its tensors."""
    return keras.tree.map_structure(
        lambda leaf: (
            None
            if leaf is None
            else f"{type(leaf).__name__}{getattr(leaf, 'shape', '')}"
        ),
        structure,
    )
