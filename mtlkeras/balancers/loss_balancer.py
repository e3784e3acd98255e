import keras
import numpy as np
from keras import ops

from mtlkeras.backend.tensorflow.derivative import derivative
from mtlkeras.balancers.per_task import values_per_task
from mtlkeras.stateful_layer import StatefulLayer


class LossBalancer(StatefulLayer):
    """How much each task's loss counts: the base class of balancers.

    A balancer joins the losses of all tasks to one number; the weight of a
    task is the derivative of that number by its loss. It works by itself on
    arrays and tensors, too:

    >>> balancer = mtlkeras.balancers.GeometricMean()
    >>> float(balancer(np.array([1.0, 4.0])))
    2.0
    >>> keras.ops.convert_to_numpy(balancer.compute_weights([1.0, 4.0]))
    array([1.  , 0.25], dtype=float32)

    In training it works under every strategy: the loss of a sub-step is
    multiplied by its task's weight, computed from the last measured loss of
    every task (times its `loss_weights`). Where a weight depends on the losses
    of other tasks, it is 1 until all are known; a task without labels in a
    batch keeps its last one. Unlike an aggregator, a balancer weighs the heads,
    too. Its variables are saved with the model and are no part of
    `model.trainable_variables`.

    Write your own by implementing `call`, which is enough for a balancer
    without memory. State goes into variables made in `build_state` with
    `add_state`, and moves in one of these, which the trainer calls:

    - `update_state` when losses have been measured, before they are weighed;
    - `finish_batch` once per batch, after the updates.

    Variables that are learned need a `LearnedLossBalancer`.

    What a subclass declares is listed here with its default in brackets.

    Attributes that a subclass sets:
        requires_all_losses: Whether a task's weight depends on the losses of
            other tasks, so that it is 1 until all are known (`True`).
        requires_positive_losses: Whether losses plus `offset` must be
            positive (`False`). A negative one raises an error after the batch
            (its update is left out); one of 0 counts as not measured.
        update_after_step: Whether `update_after` wants the losses of the
            same batch after the updates, one more forward pass (`False`).
        requires_gradient_norms: Whether `note_gradient_norms` wants the length
            of every task's gradient, at the tensors or variables that
            `norms_at` says (`False`).
        per_task_arguments: Dict of the arguments that may be a number, a list
            or a dict by task name, with the value for tasks that a dict leaves
            out (`{"offset": 0.0}`). `per_task(name)` gives an array of them.
        offset: What is added to losses that must be positive (`0`).

    Args:
        log_task_weights: Boolean. Whether `fit` logs the weights at the end of
            an epoch as `task_weight/<task>`. Defaults to `False`.
        name: String. Defaults to `None` (the class's name).
    """

    requires_all_losses = True
    requires_positive_losses = False
    update_after_step = False
    requires_gradient_norms = False
    per_task_arguments = {"offset": 0.0}
    offset = 0.0
    shift_example = "offset=1.0"  # for an error message
    negative = None  # how often each task's loss was, where it must not be

    def __init__(self, log_task_weights=False, name=None):
        # A handful of numbers: in float64 neither the squares of large losses
        # overflow nor those of small ones vanish.
        super().__init__(name=name, dtype="float64", autocast=False)
        self.log_task_weights = log_task_weights
        self.num_tasks = None
        self.task_names = None

    def call(self, task_losses):
        """The total loss.

        Args:
            task_losses: Float64 tensor of shape `[num_tasks]`.

        Returns:
            A scalar tensor.
        """
        raise NotImplementedError

    def __call__(self, task_losses):
        given = ops.convert_to_tensor(task_losses)
        task_losses = self._check_losses(given, task_losses)
        return ops.cast(super().__call__(task_losses), result_dtype(given))

    def compute_weights(self, task_losses):
        """The weight of every task: the derivatives of `call`.

        Args:
            task_losses: Array or tensor of shape `[num_tasks]`.

        Returns:
            A tensor of shape `[num_tasks]`.
        """
        given = ops.convert_to_tensor(task_losses)
        task_losses = self._check_losses(given, task_losses)
        weights = derivative(self.call, ops.stop_gradient(task_losses))
        return ops.cast(weights, result_dtype(given))

    # -- what training does ---------------------------------------------------

    def measure(self, task_losses, measured):
        """Notes losses that were measured; returns the weights to train with.

        Args:
            task_losses: Tensor of shape `[num_tasks]`.
            measured: Boolean tensor of shape `[num_tasks]`: which of them are
                the losses of labelled entries, and finite.

        Returns:
            A float64 tensor of shape `[num_tasks]`, without a gradient. NaN
            for a task whose loss is negative and must not be.
        """
        self.ensure_built(int(task_losses.shape[0]))
        losses = ops.stop_gradient(ops.cast(task_losses, "float64"))
        measured = ops.convert_to_tensor(measured, "bool")
        negative = ops.zeros_like(measured)
        if self.requires_positive_losses:
            shifted = self.shifted(losses)
            negative = ops.logical_and(measured, ops.less(shifted, 0))
            measured = ops.logical_and(measured, ops.greater(shifted, 0))
            self.negative.assign(
                self.negative + ops.cast(negative, "int32"),
            )
        losses = ops.where(measured, losses, self.last_losses)
        known = ops.logical_or(measured, self.known)
        self.last_losses.assign(losses)
        self.known.assign(known)
        self.update_state(losses, measured)
        weights = self.weights_now()
        self.task_weights.assign(weights)
        return ops.where(negative, ops.cast(np.nan, "float64"), weights)

    def weights_now(self):
        """The weights by the last measured losses, `[num_tasks]`."""
        weights = derivative(self.call, ops.copy(self.last_losses))
        if self.requires_all_losses:
            weights = ops.where(ops.all(self.known), weights, 1.0)
        return weights

    def update_state(self, task_losses, measured):
        """Lets a rule take note of measured losses; nothing here.

        Args:
            task_losses: The last measured loss of every task, `[num_tasks]`;
                1 for tasks that never were.
            measured: Which of them are new, boolean, `[num_tasks]`.
        """

    def finish_batch(self, trained):
        """Lets a rule move on, once per batch; nothing here.

        Args:
            trained: Which tasks trained in the batch, boolean, `[num_tasks]`.
        """

    def finish_epoch(self, task_losses):
        """Lets a rule take note of an epoch; nothing here.

        Args:
            task_losses: List with the mean training loss of every task, NaN
                where it did not train.
        """

    def update_after(self, task_losses, trained):
        """What `update_after_step` asks for: losses after the updates.

        Args:
            task_losses: Tensor of shape `[num_tasks]`.
            trained: Which tasks trained in the batch, boolean, `[num_tasks]`.
        """
        raise NotImplementedError

    def note_gradient_norms(self, norms, measured):
        """What `requires_gradient_norms` asks for.

        Args:
            norms: Lengths of the gradients of the unweighted losses (times
                `loss_weights`), `[num_tasks]`.
            measured: Which of them are known, boolean, `[num_tasks]`.
        """
        raise NotImplementedError

    def per_task(self, name):
        """One of `per_task_arguments` as an array `[num_tasks]`, or `None`."""
        default = self.per_task_arguments.get(name, 0.0)
        return values_per_task(name, getattr(self, name), self, default)

    def shifted(self, task_losses):
        """Losses plus `offset`: those that must be positive."""
        return task_losses + self.per_task("offset")

    def raise_if_negative(self):
        """Raises for losses that were negative and must not be."""
        if not self.requires_positive_losses or self.negative is None:
            return
        found = np.flatnonzero(ops.convert_to_numpy(self.negative))
        if len(found):
            self.negative.assign(ops.zeros_like(self.negative))
            raise ValueError(self._negative_message(found))

    def _negative_message(self, indices, received=""):
        name = type(self).__name__
        tasks = [self.task_names[i] if self.task_names else i for i in indices]
        return (
            f"{name} needs positive losses. Those of the tasks {tasks} were "
            f"not.{received} Shift losses that may be negative, as by "
            f"`{name}({self.shift_example})`, by so much that the smallest "
            "value they can have is positive."
        )

    def _check_losses(self, given, original):
        """The losses in float64, checked where they are known already."""
        if len(given.shape) != 1:
            raise ValueError(
                "Argument `task_losses` must have the shape `[num_tasks]`. "
                f"Received: task_losses of shape {tuple(given.shape)}"
            )
        self.ensure_built(int(given.shape[0]))
        given = ops.cast(given, "float64")
        if self.requires_positive_losses and isinstance(
            original, (list, tuple, np.ndarray)
        ):
            shifted = self.shifted(np.asarray(original, "float64"))
            wrong = np.flatnonzero(~(shifted > 0))
            if len(wrong):
                received = f" Received: task_losses={list(original)}."
                raise ValueError(self._negative_message(wrong, received))
        return given

    # -- state ----------------------------------------------------------------

    def bind(self, task_names):
        """Fixes the tasks, by name.

        Raises:
            ValueError: If arguments by task do not fit.
        """
        task_names = tuple(task_names)
        if self.task_names not in (None, task_names):
            raise ValueError(
                f"This {type(self).__name__} is in use for the tasks "
                f"{list(self.task_names)}. Received a model with the tasks "
                f"{list(task_names)}. Make a new one."
            )
        before, self.task_names = self.task_names, task_names
        try:
            self.ensure_built(len(task_names))
        except ValueError:
            self.task_names = before
            raise

    def ensure_built(self, num_tasks):
        """Builds the balancer, or checks that it was built for these tasks."""
        if not self.built:
            self.build((num_tasks,))
        if num_tasks != self.num_tasks:
            raise ValueError(
                f"This {type(self).__name__} was built for {self.num_tasks} "
                f"tasks. Received losses of {num_tasks} tasks. Make a new one."
            )

    def build(self, task_losses_shape):
        self.num_tasks = int(task_losses_shape[0])
        # Before there is any variable: they are wrong for these tasks, or not.
        for name in self.per_task_arguments:
            self.per_task(name)
        shape = (self.num_tasks,)
        # Not 0, of which a logarithm is minus infinity.
        self.last_losses = self.add_state("last_losses", shape, "ones")
        self.known = self.add_state("known", shape, dtype="bool")
        self.task_weights = self.add_state("task_weights", shape, "ones")
        if self.requires_positive_losses:
            self.negative = self.add_state("negative", shape, dtype="int32")
        self.build_state(self.num_tasks)
        self.built = True

    def get_build_config(self):
        """None: arguments by task name wait for the names of a model."""

    def build_state(self, num_tasks):
        """Makes the variables of the rule; none here."""

    @property
    def last_task_weights(self):
        """Weights of the tasks in the last batch, a NumPy array.

        In the order of the model's tasks; `None` before the first batch.
        """
        if not self.built:
            return None
        return ops.convert_to_numpy(self.task_weights).copy()

    def same_rule(self, other):
        """Whether another balancer is of the same kind and arguments."""
        if type(self) is not type(other):
            return False
        mine, theirs = self.get_config(), other.get_config()
        return {**mine, "name": None} == {**theirs, "name": None}

    def get_config(self):
        return {"log_task_weights": self.log_task_weights, "name": self.name}


def result_dtype(given):
    """The precision of a result: that of the losses, if they are floats."""
    dtype = keras.backend.standardize_dtype(given.dtype)
    return dtype if dtype in ("float32", "float64") else "float32"
