import warnings

import keras
import numpy as np
from keras import ops


class TaskAffinity(keras.layers.Layer):
    """What steps of tasks did to all losses, and the groups in force.

    State of `AffinityGroups`. A layer, so that Keras saves it with the model.

    Args:
        num_tasks: Integer.
        decay: Float. How much one measurement counts.

    Attributes:
        matrix: Variable `[num_tasks, num_tasks]`: running mean of the part of
            its loss that a step of the row's task took from the column's.
        assigned: Variable `[num_tasks]`, the group of every task, numbered in
            the order of their first tasks.
        formed_at: Variable, the batch counter when groups were formed last.
    """

    def __init__(self, num_tasks, decay):
        # In float64 the squares of small gains do not vanish.
        super().__init__(name="task_affinity", dtype="float64", autocast=False)
        self.decay = decay
        self.matrix = self._add("matrix", (num_tasks, num_tasks), "float64")
        self.assigned = self._add(
            "assigned",
            (num_tasks,),
            "int64",
            lambda shape, dtype: ops.arange(num_tasks, dtype=dtype),
        )
        self.formed_at = self._add("formed_at", (), "int64")
        self.built = True

    def _add(self, name, shape, dtype, initializer="zeros"):
        return self.add_weight(
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            name=name,
        )

    def credit(self, before, after, stepped, measured):
        """Credits the tasks that made a step with what it did to all losses.

        Args:
            before: Losses at the weights before the step, `[num_tasks]`.
            after: Losses of the same batch after it, `[num_tasks]`.
            stepped: Which tasks made the step together, boolean,
                `[num_tasks]`.
            measured: Which tasks have labels, boolean, `[num_tasks]`.
        """
        before, after = ops.cast(before, "float64"), ops.cast(after, "float64")
        for losses in (before, after):
            measured = ops.logical_and(measured, ops.isfinite(losses))
        measured = ops.logical_and(measured, ops.not_equal(before, 0))
        size = ops.maximum(ops.sum(ops.cast(stepped, "float64")), 1.0)
        one = ops.ones_like(before)
        gain = ops.where(measured, before - after, 0.0)
        gain = gain / (ops.where(measured, ops.abs(before), one) * size)
        stepped = ops.logical_and(stepped, measured)
        row, column = gain[:, None], gain[None, :]
        # Of two that stepped together, opposite gains count against both.
        together = ops.logical_and(stepped[:, None], stepped[None, :])
        opposed = ops.logical_and(together, ops.less(row * column, 0))
        value = ops.where(opposed, -ops.maximum(row, column), column)
        # What a step does to its own task is the unit of all else in the
        # column, so a step that went wrong is left out.
        own = np.eye(self.matrix.shape[0], dtype=bool)
        wrong = ops.logical_and(own, ops.less(row, 0))
        counts = ops.logical_and(stepped[:, None], measured[None, :])
        counts = ops.logical_and(counts, ops.logical_not(wrong))
        mean = ops.copy(self.matrix)
        self.matrix.assign(
            ops.where(counts, mean + self.decay * (value - mean), mean)
        )

    def form_groups(self, preference, step):
        """Forms groups anew, on the host; keeps the old ones if none emerge.

        Args:
            preference: `"median"` or a float, see `AffinityGroups`.
            step: Integer, the batch counter.
        """
        affinity = ops.convert_to_numpy(self.matrix)
        groups = cluster(affinity, preference)
        if groups is not None:
            self.assigned.assign(groups)
        self.formed_at.assign(step)

    def load_own_variables(self, store):
        if not store.keys():
            warnings.warn(
                "The file holds no task affinities: it was saved under another "
                "strategy. They are measured from the start.",
                stacklevel=2,
            )
            return
        super().load_own_variables(store)


def cluster(affinity, preference):
    """Groups of tasks that help one another, by affinity propagation.

    Args:
        affinity: Array `[num_tasks, num_tasks]`.
        preference: `"median"` or a float.

    Returns:
        Array `[num_tasks]` of group indices, or `None` if it did not converge.
    """
    affinity_propagation, NotConverged = import_affinity_propagation()
    own = np.diag(affinity)
    # A task whose own steps have never helped it has no unit: it stays alone.
    known = np.flatnonzero(own > 0)
    groups = np.arange(len(own))
    if len(known) < 2:
        return groups
    relative = affinity[np.ix_(known, known)] / own[known]
    similarity = (relative + relative.T) / 2
    if not np.isfinite(similarity).all():
        return None
    if preference == "median":
        preference = np.median(similarity)
    for damping in (0.5, 0.7, 0.9, 0.95):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConverged)
            # Of equal similarities, as two tasks have them.
            warnings.filterwarnings("ignore", "All samples have mutually equal")
            _, labels, steps = affinity_propagation(
                similarity,
                preference=preference,
                damping=damping,
                convergence_iter=50,
                max_iter=MAX_STEPS,
                return_n_iter=True,
                random_state=0,
            )
        if steps < MAX_STEPS:
            groups[known] = known[_first_of_each(labels)]
            return _numbered(groups)
    return None


MAX_STEPS = 1000


def _first_of_each(labels):
    """The position at which each label appears first."""
    return np.array([np.argmax(labels == label) for label in labels])


def _numbered(groups):
    """Labels as 0, 1, ... in the order of their first appearance."""
    return np.unique(groups, return_inverse=True)[1]


def import_affinity_propagation():
    try:
        from sklearn.cluster import affinity_propagation
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError as error:
        raise ImportError(
            "`AffinityGroups` forms its groups with scikit-learn, but the "
            f"package `{error.name}` is not installed. Install it with: "
            '`pip install "mtlkeras[clustering]"`'
        ) from error
    return affinity_propagation, ConvergenceWarning
