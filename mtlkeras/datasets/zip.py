from mtlkeras.backend.tensorflow import TaskDatasets
from mtlkeras.datasets.stopping import STOPS, check_stop


def zip(datasets, stop="all_exhausted", fill_missing_inputs=False):
    """One data set per task becomes one: each batch has rows of all of them.

    For tasks that have samples of their own, where every batch is to train
    every task: under `"joint"` with or without an aggregator, `"alternating"`,
    groups. A batch of the result holds the rows of one batch of each data set,
    one below the other; a row has 0 as target and sample weight 0 for the
    tasks that its data set does not label. Choose the share of a data set by
    its batch size. See `interleave` for one data set per batch.

    Two things follow from rows of weight 0, as Keras has it:

    - Its losses divide by all rows, so a task counts by its share of them. For
      the mean over the rows of the task alone, give losses
      `reduction="mean_with_sample_weight"`.
    - `compile(metrics=...)` looks at all rows. Give `weighted_metrics=...`.

    Args:
        datasets: Dict from the name of a task to a batched `tf.data.Dataset`
            of `(x, y)` or `(x, y, sample_weight)`. Where `y` is a dict over
            task names the data set labels these tasks, and its own name is
            free.
        stop: When an epoch ends. `"all_exhausted"`: when every data set was
            seen to its end; those that end earlier begin anew, and the longest
            is seen exactly once. `"first_exhausted"`: when one has no batch
            left. An integer: after so many batches, beginning anew as needed.
            `None`: never, for `fit(steps_per_epoch=...)`. Defaults to
            `"all_exhausted"`.
        fill_missing_inputs: Boolean. Where `x` is a dict: zeros in place of
            keys that a data set lacks. Defaults to `False`: that is an error.

    Returns:
        A `tf.data.Dataset` of `(x, y, sample_weight)`, the last two dicts over
        all tasks, with a known number of batches where there is one.

    Raises:
        ValueError: As for `interleave`.

    Example:

    >>> import tensorflow as tf
    >>> def data(value, rows, batch_size):
    ...     x, y = np.full((rows, 3), value), np.full((rows, 1), value)
    ...     return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    >>> data = mtlkeras.datasets.zip(
    ...     {"left": data(1.0, 2, 1), "right": data(2.0, 6, 2)}
    ... )
    >>> len(data)
    3
    >>> x, y, sample_weight = next(data.as_numpy_iterator())
    >>> y["left"].tolist(), y["right"].tolist()
    ([[1.0], [0.0], [0.0]], [[0.0], [2.0], [2.0]])
    >>> sample_weight["left"].tolist(), sample_weight["right"].tolist()
    ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0])
    """
    tasks = TaskDatasets(datasets, fill_missing_inputs)
    sizes = tasks.sizes.values()
    check_stop(stop, tasks.sizes, STOPS)
    if stop in STOPS:
        stop = min(sizes) if stop == "first_exhausted" else max(sizes)
    return tasks.joined(stop)
