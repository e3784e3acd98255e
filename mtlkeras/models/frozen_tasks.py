import keras
import numpy as np
from keras import ops


class FrozenTasks(keras.layers.Layer):
    """Which tasks of a model no longer train: state of `TaskEarlyStopping`.

    It is saved with the model and the model's own, not the callback's, so that
    a resumed run goes on with it.

    Args:
        names: Tuple of task names.

    Attributes:
        flags: Boolean variable, `[num_tasks]`.
        best: The best value of each task's metric, NaN before the first.
        wait: How many validations ago that was.
    """

    def __init__(self, names):
        super().__init__(name="frozen_tasks", dtype="float64")
        self.names = names
        shape = (len(names),)
        self.flags = self._add("flags", shape, "zeros", "bool")
        self.best = self._add(
            "best", shape, keras.initializers.Constant(np.nan), "float64"
        )
        self.wait = self._add("wait", shape, "zeros", "int32")
        self._heads = {}  # task -> arrays
        self.built = True

    def _add(self, name, shape, initializer, dtype):
        return self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            name=name,
        )

    def keep_head(self, name, variables):
        """Remembers the values of a task's own variables."""
        self._heads[name] = [
            np.array(ops.convert_to_numpy(v)) for v in variables
        ]

    def restore_head(self, name, variables):
        """Gives a task's own variables the values that were kept."""
        kept = self._heads.get(name, [])
        for variable, value in zip(variables, kept, strict=bool(kept)):
            variable.assign(value)

    def reset(self):
        """Lets all tasks train again and forgets their best values."""
        self.flags.assign(ops.zeros_like(self.flags))
        self.best.assign(np.full(len(self.names), np.nan))
        self.wait.assign(ops.zeros_like(self.wait))
        self._heads.clear()

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for name, values in self._heads.items():
            for position, value in enumerate(values):
                store[f"head_{self.names.index(name)}_{position}"] = value

    def load_own_variables(self, store):
        heads = {}
        for key in store.keys():
            if key.startswith("head_"):
                _, task, position = key.split("_")
                heads.setdefault(self.names[int(task)], {})[int(position)] = (
                    np.array(store[key])
                )
        self._heads = {
            name: [values[i] for i in range(len(values))]
            for name, values in heads.items()
        }
        own = {
            key: store[key]
            for key in store.keys()
            if not key.startswith("head_")
        }
        if own:  # a file of an earlier version has none
            super().load_own_variables(own)
