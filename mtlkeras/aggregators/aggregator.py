import keras
import numpy as np
from keras import ops

from mtlkeras.stateful_layer import StatefulLayer


class Aggregator(StatefulLayer):
    """Several task gradients become one direction: the base class.

    An aggregator acts on the gradients of the variables that tasks share; the
    direction takes the place of the gradient in the optimizer's update. Every
    head keeps following the plain gradient of its own loss. It works by itself
    on arrays and tensors of any float dtype, too:

    >>> jacobian = np.array([[1.0, 0.0], [3.0, 4.0]])
    >>> direction = mtlkeras.aggregators.Sum()(jacobian)
    >>> keras.ops.convert_to_numpy(direction)
    array([4., 4.])

    Tasks that have no label in a batch or whose gradient is not finite are
    taken out by `live`; without it, rows whose squared length is not finite
    (in float32, rows longer than 1.8e19) are. With one live task the direction
    is that task's gradient itself, under every rule.

    Write your own by implementing `aggregate`, or `compute_weights` of a
    `GramianAggregator`. Random or running state belongs into variables made
    in `build_state` with `add_state`: they are saved with the model and
    restored, and `reset_state` sets them back.

    What a subclass declares is listed here with its default in brackets.

    Attributes that a subclass sets:
        requires_losses: Whether `task_losses` must be given (`False`).
        requires_positive_losses: Whether a task whose loss is not positive is
            to be left out and reported, as one that is not finite (`False`).
        allows_features: Whether the rule makes sense on gradients at features,
            too (`True`).
        needs_rows: Whether the rule needs the gradients themselves and not
            their inner products alone (`True`).
        per_task_arguments: Names of arguments that may be lists with one value
            per task, of which a task group takes its own (`()`).

    Args:
        gradients_at: `"parameters"` or `"features"`. Features are the tensors
            where the part of the network ends that the tasks share: one
            backward pass through each head and a single one through the
            trunk, in place of one through everything per task. The rule then
            sees other gradients (those for the features of a batch), so it is
            an approximation, exact where the trunk is an isometric linear map.
            Defaults to `"parameters"`.
        feature_layers: List of names of the layers whose outputs are the
            features, for models whose graph is not known. Defaults to `None`:
            found from the graph.
        memory: `"high"` keeps the gradients of all tasks until the direction
            is known, `num_tasks` times the shared variables. `"low"` lets go
            of a variable's gradients once their inner products are known, and
            then runs one more backward pass, of the weighted sum of the
            losses; for rules that are a `GramianAggregator`. It saves about a
            quarter of the peak. Defaults to `"high"`.
        name: String. Defaults to `None` (the class's name).
    """

    per_task_arguments = ()
    requires_losses = False
    requires_positive_losses = False
    allows_features = True
    needs_rows = True

    def __init__(
        self,
        gradients_at="parameters",
        feature_layers=None,
        memory="high",
        name=None,
    ):
        # Rules stay in the precision of what they get, whatever the policy.
        super().__init__(name=name, dtype="float32", autocast=False)
        _check_choice("gradients_at", gradients_at, ("parameters", "features"))
        _check_choice("memory", memory, ("high", "low"))
        if gradients_at == "features" and not self.allows_features:
            raise ValueError(
                f"{type(self).__name__} keeps estimates of the gradients of "
                "parameters, so it cannot work on those of features, which "
                "belong to a batch. Received: gradients_at='features'. Use "
                "`gradients_at='parameters'`."
            )
        if memory == "low" and self.needs_rows:
            raise ValueError(
                f"{type(self).__name__} needs the gradients of all tasks at "
                "once. Received: memory='low'. Use `memory='high'`, or a rule "
                "that is a `GramianAggregator`."
            )
        if feature_layers is not None and gradients_at != "features":
            raise ValueError(
                "Argument `feature_layers` goes with gradients_at='features'. "
                f"Received: feature_layers={feature_layers!r} with "
                f"gradients_at={gradients_at!r}"
            )
        self.gradients_at = gradients_at
        self.feature_layers = (
            None if feature_layers is None else list(feature_layers)
        )
        self.memory = memory
        self.num_tasks = None
        self._groups = _Groups()
        self._group_indices = []
        self._state_dtype = "float32"

    def aggregate(self, jacobian, task_losses, live):
        """The direction of the live rows.

        Args:
            jacobian: Tensor of shape `[num_tasks, num_params]`; row `i` is the
                gradient of task `i`. Rows that are not live are 0.
            task_losses: Tensor of shape `[num_tasks]`, or `None`.
            live: Boolean tensor of shape `[num_tasks]`.

        Returns:
            A tensor of shape `[num_params]`.
        """
        raise NotImplementedError

    def call(self, jacobian, task_losses=None, live=None):
        live = finite_rows(jacobian) if live is None else live
        live = self.with_valid_losses(ops.cast(live, "bool"), task_losses)
        # Selected and not multiplied: NaN times 0 is NaN.
        jacobian = ops.where(live[:, None], jacobian, 0.0)
        task_losses = self._cast_losses(task_losses, live)
        dtype = keras.backend.standardize_dtype(jacobian.dtype)
        jacobian = ops.cast(jacobian, wide_dtype(dtype))
        direction = self.aggregate(jacobian, task_losses, live)
        weights = ops.cast(
            self.weights_of_single(live.shape[0]), jacobian.dtype
        )
        single = ops.sum(weights[:, None] * jacobian, 0)
        direction = ops.cast(direction, jacobian.dtype)
        return ops.cast(ops.where(is_single(live), single, direction), dtype)

    def weights_of_single(self, num_tasks):
        """The weight of each task where it is the only live one."""
        return ops.ones((num_tasks,), "float64")

    def __call__(self, jacobian, task_losses=None, live=None):
        jacobian = ops.convert_to_tensor(jacobian)
        check_matrix("jacobian", jacobian, "[num_tasks, num_params]")
        if not self.built:
            self._state_dtype = wide_dtype(jacobian.dtype)
        self.ensure_built(*jacobian.shape)
        if task_losses is not None:
            self._check_losses(task_losses, live)
            task_losses = ops.convert_to_tensor(task_losses)
        if live is not None:
            live = ops.convert_to_tensor(live, "bool")
        check_one_per_task(jacobian.shape[0], task_losses, live)
        return super().__call__(jacobian, task_losses, live)

    def with_valid_losses(self, live, task_losses):
        """`live` without tasks whose loss this rule can do nothing with."""
        if not self.requires_positive_losses or task_losses is None:
            return live
        return ops.logical_and(live, ops.greater(task_losses, 0))

    def _check_losses(self, task_losses, live):
        """Raises for numbers that are wrong, where they are known already."""
        if not self.requires_positive_losses:
            return
        if not isinstance(task_losses, (list, tuple, np.ndarray)):
            return
        known = live is None or isinstance(live, (list, tuple, np.ndarray))
        if not known:
            return
        losses = np.asarray(task_losses)
        wrong = ~(losses > 0) & (True if live is None else np.asarray(live))
        if np.any(wrong):
            raise ValueError(
                f"{type(self).__name__} needs positive `task_losses`. "
                f"Received: task_losses={losses.tolist()}. Add a constant to "
                "the losses, or leave tasks out with `live`."
            )

    def _cast_losses(self, task_losses, live):
        if task_losses is None:
            if self.requires_losses:
                raise ValueError(
                    f"{type(self).__name__} needs `task_losses`, a tensor of "
                    "shape `[num_tasks]`. Received: task_losses=None"
                )
            return None
        # What a task that is left out lost may be NaN.
        return ops.where(live, ops.cast(task_losses, "float64"), 1.0)

    # -- state ----------------------------------------------------------------

    def build(self, jacobian_shape):
        """Makes the state for a number of tasks and of parameters."""
        self.num_tasks = int(jacobian_shape[0])
        self.build_state(*jacobian_shape)
        self.built = True

    def ensure_built(self, num_tasks, num_params=0):
        """Builds the rule, or checks that it was built for this many tasks."""
        if not self.built:
            self.build((num_tasks, num_params))
        if num_tasks != self.num_tasks:
            raise ValueError(
                f"This {type(self).__name__} was built for {self.num_tasks} "
                f"tasks. Received gradients of {num_tasks} tasks. Make a new "
                "one."
            )

    def build_state(self, num_tasks, num_params):
        """Makes the variables of the rule, with `add_state`; none here."""

    def reset_state(self):
        """Sets the rule back to where it was before the first step."""
        super().reset_state()
        for layer in self._flatten_layers(include_self=False):
            if isinstance(layer, Aggregator):
                layer.reset_state()

    def compile_solver(self, wrap):
        """Lets a backend compile the pure part of a rule; none here."""

    @property
    def last_task_weights(self):
        """Weights of the tasks in the last step, a NumPy array.

        `None` for a rule that is no weighted sum of the task gradients, and
        before the first step. In the order of the model's tasks.
        """
        if not self._groups.aggregators:
            return self._own_task_weights()
        found = [
            a.last_task_weights if len(indices) > 1 else [1.0]
            for a, indices in zip(
                self._groups.aggregators, self._group_indices, strict=True
            )
        ]
        if any(weights is None for weights in found):
            return None
        order = sum(self._group_indices, ())
        return np.concatenate(found).astype("float32")[np.argsort(order)]

    def _own_task_weights(self):
        return None

    def for_groups(self, groups):
        """One aggregator per task group: this one, or copies with own state.

        Args:
            groups: Tuple of tuples of task indices.
        """
        if len(groups) == 1:
            self._group_indices, self._groups.aggregators = [], []
            return [self]
        if self._group_indices != list(groups):
            self._group_indices = list(groups)
            num_tasks = sum(map(len, groups))
            self._groups.aggregators = [
                type(self).from_config(self.config_for(indices, num_tasks))
                for indices in groups
            ]
        return list(self._groups.aggregators)

    def config_for(self, indices, num_tasks):
        """The config of the same rule for some of the tasks.

        Args:
            indices: Which of the tasks.
            num_tasks: How many there are in all.
        """
        config = self.get_config()
        for name in self.per_task_arguments:
            values = config[name]
            if isinstance(values, list) and len(values) == num_tasks:
                config[name] = [values[i] for i in indices]
        return config

    def same_rule(self, other):
        """Whether another aggregator is of the same kind and arguments."""
        if type(self) is not type(other):
            return False
        mine, theirs = (_settings(a.get_config()) for a in (self, other))
        return mine == theirs

    def get_config(self):
        return {
            "gradients_at": self.gradients_at,
            "feature_layers": self.feature_layers,
            "memory": self.memory,
            "name": self.name,
        }


class _Groups(keras.layers.Layer):
    """Holds the copies of a rule that has been built, which takes no more."""

    def __init__(self):
        super().__init__(name="groups")
        self.aggregators = []


def _settings(config):
    """A config without what two equal rules may differ in."""
    if isinstance(config, dict):
        return {
            key: _settings(value)
            for key, value in config.items()
            if key not in ("name", "build_config")
        }
    return config


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(
            f"Argument `{name}` must be one of {choices}. Received: "
            f"{name}={value!r}"
        )


def wide_dtype(dtype):
    """The dtype to sum products in: inner products overflow half precision."""
    dtype = keras.backend.standardize_dtype(dtype)
    return dtype if dtype in ("float32", "float64") else "float32"


def all_live(num_tasks):
    return ops.ones((num_tasks,), "bool")


def finite_rows(jacobian):
    """Which rows are finite, and so is their squared length."""
    wide = ops.cast(jacobian, wide_dtype(jacobian.dtype))
    return ops.isfinite(ops.sum(wide * wide, 1))


def is_single(live):
    """Whether exactly one task is live."""
    return ops.equal(ops.sum(ops.cast(live, "int32")), 1)


def check_one_per_task(num_tasks, task_losses, live):
    """Refuses vectors that are not as long as there are tasks."""
    for name, vector in (("task_losses", task_losses), ("live", live)):
        if vector is not None and tuple(vector.shape) != (num_tasks,):
            raise ValueError(
                f"Argument `{name}` must have the shape `[num_tasks]`, here "
                f"({num_tasks},). Received: {name} of shape "
                f"{tuple(vector.shape)}"
            )


def check_matrix(name, matrix, shape):
    """Refuses what is no matrix of floats."""
    dtype = keras.backend.standardize_dtype(matrix.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Argument `{name}` must be of a float dtype. Received: "
            f"{name} of dtype {dtype}"
        )
    if len(matrix.shape) != 2:
        raise ValueError(
            f"Argument `{name}` must have the shape `{shape}`. Received: "
            f"{name} of shape {tuple(matrix.shape)}"
        )
