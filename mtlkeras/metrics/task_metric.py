import keras
from keras import ops


class TaskMetric(keras.metrics.Metric):
    """A user's metric that sees labelled entries of tasks that ran, only.

    `MultiTaskModel` puts one around each metric given to `compile`. It keeps
    the name, the result and the variables of the metric it holds.

    Args:
        metric: What Keras accepts as a metric: id, function or object.
        flags: Dict from `id(y_pred)` to `(target, entries, ran)` for the
            predictions of the running step: the target without NaN, its
            weights of 1 and 0 (or `None`) and whether the task ran (boolean
            tensor or `None`). The model fills it around `compute_metrics`.
    """

    def __init__(self, metric, flags):
        self._flags = (flags,)
        self.metric = None
        name, resolved = resolve_metric(metric)
        super().__init__(name=name)
        self._identifier = metric
        # Whether entries or tasks were never left out, which is only known in
        # the graph.
        self._sees_all = True
        self.metric = resolved
        self._take_direction()

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.metric is None:
            # Which accuracy is meant depends on the shapes.
            self.metric = metric_for_shapes(self._identifier, y_true, y_pred)
            self._take_direction()
        nothing = (y_true, None, None)
        y_true, entries, ran = self._flags[0].get(id(y_pred), nothing)
        if entries is not None:
            sample_weight = combine(entries, sample_weight)
        if entries is not None or ran is not None:
            self._sees_all = False
        if ran is None:
            return self._update(y_true, y_pred, sample_weight)
        # Selecting the new state, not weighing by 0: NaN times 0 is NaN.
        with keras.StatelessScope() as scope:
            self._update(y_true, y_pred, sample_weight)
        for variable in self.metric.variables:
            new = scope.get_current_value(variable)
            if new is not None:
                variable.assign(ops.where(ran, new, variable))

    def _take_direction(self):
        # Keras's callbacks ask for it to tell better from worse.
        if hasattr(self.metric, "_direction"):
            self._direction = self.metric._direction

    def _update(self, y_true, y_pred, sample_weight):
        if sample_weight is None:
            return self.metric.update_state(y_true, y_pred)
        return self.metric.update_state(
            y_true, y_pred, sample_weight=sample_weight
        )

    def result(self):
        result, count = self.metric.result(), self._count()
        if count is None:
            return result
        # A mean of nothing is no 0, which would look like a best or worst one.
        nan = ops.cast(float("nan"), result.dtype)
        return ops.where(ops.equal(count, 0), nan, result)

    def _count(self):
        """How much a mean is taken over, if the metric is one."""
        count = getattr(self.metric, "count", None)
        if not isinstance(self.metric, keras.metrics.Mean) or self._sees_all:
            return None
        return count

    def reset_state(self):
        if self.metric is not None:
            self.metric.reset_state()


def combine(entries, sample_weight):
    """Weights of 1 and 0 times the user's, one per prediction."""
    if sample_weight is None:
        return entries
    sample_weight = ops.cast(sample_weight, entries.dtype)
    if len(sample_weight.shape) == len(entries.shape) + 1:
        sample_weight = ops.squeeze(sample_weight, -1)
    for _ in range(len(entries.shape) - len(sample_weight.shape)):
        sample_weight = ops.expand_dims(sample_weight, -1)
    return entries * sample_weight


def resolve_metric(metric):
    """Name and metric object; the object is `None` if shapes decide."""
    if isinstance(metric, str) and metric.lower() in ("accuracy", "acc"):
        return metric, None
    found = keras.metrics.get(metric)
    if isinstance(metric, str):
        name = metric
    else:
        name = getattr(found, "name", None) or getattr(
            found, "__name__", type(found).__name__
        )
    if not isinstance(found, keras.metrics.Metric):
        found = keras.metrics.MeanMetricWrapper(found, name=name)
    found.name = name
    return name, found


def metric_for_shapes(identifier, y_true, y_pred):
    """The accuracy that Keras's `compile` means for targets of this shape."""
    classes = y_pred.shape[-1]
    is_sparse = len(y_true.shape) < len(y_pred.shape) or (
        y_true.shape[-1] == 1 and classes is not None and classes > 1
    )
    if classes == 1:
        return keras.metrics.BinaryAccuracy(name=identifier)
    if is_sparse:
        return keras.metrics.SparseCategoricalAccuracy(name=identifier)
    return keras.metrics.CategoricalAccuracy(name=identifier)
