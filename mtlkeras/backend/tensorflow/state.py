"""What a forward pass leaves behind besides its outputs."""

import keras
import tensorflow as tf


def is_seed(variable):
    return variable.name == "seed_generator_state"


def updated_state(model):
    """Non-trainable variables that a forward pass may change, seeds aside."""
    return [
        v
        for v in model.non_trainable_variables
        if not is_seed(v) and v.dtype != "string"
    ]


def own_state(layer):
    """A layer's non-trainable variables but for those of layers inside.

    These may serve fewer tasks than the layer as a whole.
    """
    inside = {
        id(v)
        for inner in layer._flatten_layers(include_self=False)
        for v in inner.non_trainable_variables
    }
    return [v for v in layer.non_trainable_variables if id(v) not in inside]


def is_loss_scaled(optimizer, slot=None):
    """Whether overflows are handled inside the optimizer's `apply`."""
    clones = getattr(optimizer, "optimizers", None) or [optimizer]
    return isinstance(clones[slot or 0], keras.optimizers.LossScaleOptimizer)


class ForwardScope:
    """Runs a forward pass and holds back its changes of state.

    BatchNormalization statistics have to come from the first sub-step that
    ran, and which that is shows only after the gradients. Seeds move on at
    once, so that every sub-step draws fresh dropout masks.
    """

    def __init__(self, layers):
        self.layers = layers
        state = [(own_state(layer), tasks) for layer, tasks in layers]
        self.variables = list(
            {id(v): v for variables, _ in state for v in variables}.values()
        )
        # Rows of state that belong to one task: every sub-step has its own.
        self.by_task = {
            id(v)
            for layer, _ in layers
            if getattr(layer, "depends_on_task", False)
            for v in layer.non_trainable_variables
        }
        self.tasks = {
            id(v): tasks
            for variables, tasks in reversed(state)
            for v in variables
        }
        self._scope = keras.StatelessScope(collect_losses=True)

    def __enter__(self):
        # Layers know their losses by `id`. Those of an earlier pass are gone,
        # and a loss of this one could get the same.
        for layer, _ in self.layers:
            layer._clear_losses()
        self._scope.__enter__()
        return self

    def __exit__(self, *exception):
        self._scope.__exit__(*exception)
        if exception[0] is None:
            for variable in self.variables:
                value = self._scope.get_current_value(variable)
                if value is not None and is_seed(variable):
                    variable.assign(value)

    def added_losses(self):
        """`(tasks, loss)` of every `add_loss` term; inside the scope."""
        return [
            (tasks, tf.reduce_sum(tf.cast(loss, tf.float32)))
            for layer, tasks in self.layers
            for loss in layer._get_own_losses()
        ]

    def commit(self, is_first):
        """Writes the held-back state.

        Args:
            is_first: Function from a tuple of tasks to whether this sub-step
                is the first to run one of them (`True`, `False` or a tensor).
        """
        for variable in self.variables:
            value = self._scope.get_current_value(variable)
            if value is None or is_seed(variable):
                continue
            first = id(variable) in self.by_task
            first = first or is_first(self.tasks[id(variable)])
            if first is True:
                variable.assign(value)
            elif first is not False:
                variable.assign(tf.where(first, value, variable.value))
