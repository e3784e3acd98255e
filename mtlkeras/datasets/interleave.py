import numbers

import numpy as np
from keras import ops

from mtlkeras.backend.tensorflow import TaskDatasets
from mtlkeras.datasets.stopping import (
    STOPS,
    check_known,
    check_stop,
    count_draws,
)
from mtlkeras.linalg.weighted_choice import choice_limits, weighted_choice


def interleave(
    datasets,
    probabilities=None,
    temperature=None,
    stop="all_exhausted",
    seed=0,
    fill_missing_inputs=False,
):
    """One data set per task becomes one: each batch belongs to one of them.

    For tasks that have samples of their own. A batch of the result is a batch
    of one data set, with 0 as targets and sample weights 0 for the tasks that
    it does not label; these tasks rest in that batch. Choose `zip` to have
    rows of all data sets in every batch.

    The result is deterministic if the data sets are: which one comes next is a
    function of `seed` and of the number of the batch, the same in every epoch.
    So `callbacks.BackupAndResume` goes on in the middle of an epoch with the
    same bits, and `dataset.skip(n)` gives what comes after `n` batches.

    Which strategy? `"alternating"` visits just the task of the batch, with its
    own optimizer slots, whatever the order, and is right for every result of
    this function. `"round_robin"` and `"sampled"` choose among the tasks that
    the batch labels, so here they do the same, with one head to run.
    `"joint"` makes one update with one state in common, which also moves heads
    of absent tasks by their momentum.

    Args:
        datasets: Dict from the name of a task to a batched `tf.data.Dataset`
            of `(x, y)` or `(x, y, sample_weight)`. Where `y` is a dict over
            task names the data set labels these tasks, and its own name is
            free. Batch sizes may differ.
        probabilities: Which data set comes next. `None` takes them in turn;
            `"proportional"` draws by their numbers of batches; a list or a
            dict over the names gives probabilities that sum to 1. Defaults to
            `None`.
        temperature: Positive number `t`: draws with probabilities in
            proportion to `p^(1 / t)`. 1 changes nothing, a larger one brings
            them closer to each other. Defaults to `None`, which is 1.
        stop: When an epoch ends. `"all_exhausted"`: when every data set was
            seen to its end; those that end earlier begin anew, and the one
            that takes longest is seen exactly once. `"first_exhausted"`: when
            one has no batch left. `"once"`: when every batch of every data set
            was seen exactly once; those that have ended are passed over (for
            evaluation). Taken in turn the first two end with a whole round. An
            integer: after so many batches, beginning anew as needed. `None`:
            never, for `fit(steps_per_epoch=...)`. Defaults to
            `"all_exhausted"`.
        seed: Non-negative integer, for the draws. Defaults to `0`.
        fill_missing_inputs: Boolean. Where `x` is a dict: zeros in place of
            keys that a data set lacks. Defaults to `False`: that is an error.

    Returns:
        A `tf.data.Dataset` of `(x, y, sample_weight)`, the last two dicts over
        all tasks, with a known number of batches where there is one.

    Raises:
        ValueError: If an argument is not as above; if a data set is empty or
            not batched; if inputs, targets or sample weights of the same name
            differ in shape or dtype; if `"proportional"` or `stop` need a
            number of batches that is infinite or not known.

    Example:

    >>> import tensorflow as tf
    >>> def data(value, rows):
    ...     x, y = np.full((rows, 3), value), np.full((rows, 1), value)
    ...     return tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    >>> data = interleave({"left": data(1.0, 4), "right": data(2.0, 8)})
    >>> len(data)
    8
    >>> [x[0, 0].item() for x, y, sample_weight in data.as_numpy_iterator()]
    [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    >>> x, y, sample_weight = next(data.as_numpy_iterator())
    >>> y["right"].tolist(), sample_weight["right"].tolist()
    ([[0.0], [0.0]], [0.0, 0.0])

    References:
        - Temperatures: [Arivazhagan et al., 2019](
          https://arxiv.org/abs/1907.05019), there for languages, by samples
          and not by batches.
    """
    tasks = TaskDatasets(datasets, fill_missing_inputs)
    sizes = tasks.sizes
    check_stop(stop, sizes, (*STOPS, "once"))
    check_seed(seed)
    count = len(sizes)
    drawn = probabilities_of(probabilities, sizes, temperature)
    if drawn is None:

        def select(number):
            return ops.mod(ops.cast(number, "int64"), np.int64(count))

    else:

        def select(number):
            return weighted_choice(drawn, seed, number)

    num_batches = stop
    if stop == "once":
        check_all_drawn(drawn, sizes)
        known = None not in sizes.values()
        num_batches = sum(sizes.values()) if known else None
    elif stop in STOPS:
        if drawn is None:
            shortest = stop == "first_exhausted"
            rounds = (min if shortest else max)(sizes.values())
            num_batches = rounds * count
        else:
            num_batches = count_draws(select, list(sizes.values()), drawn, stop)
    return tasks.chosen(select, num_batches, repeat=stop != "once")


def probabilities_of(given, sizes, temperature):
    """Array of a probability per data set; `None` where they take turns."""
    if temperature is not None and (
        given is None
        or isinstance(temperature, bool)
        or not isinstance(temperature, numbers.Real)
        or not 0 < temperature < float("inf")
    ):
        raise ValueError(
            "Argument `temperature` must be a positive number, and needs "
            "`probabilities` that it can act on, such as 'proportional'. "
            f"Received: temperature={temperature!r}, probabilities={given!r}"
        )
    if given is None:
        return None
    if isinstance(given, str) and given == "proportional":
        check_known("probabilities='proportional'", sizes)
        given = list(sizes.values())
        infinite = [n for n, size in sizes.items() if size == float("inf")]
        if infinite:
            raise ValueError(
                "With probabilities='proportional' every data set must end. "
                f"Received: {infinite}, which are infinite. Pass numbers as "
                "`probabilities`, or leave out `repeat()`."
            )
        given = np.divide(given, sum(given))
    elif isinstance(given, dict) and set(given) == set(sizes):
        given = [given[name] for name in sizes]
    valid = not isinstance(given, (str, dict)) and np.shape(given) == (
        len(sizes),
    )
    drawn = np.asarray(given, "float64") if valid else None
    if not valid or not (drawn >= 0).all() or abs(drawn.sum() - 1) > 1e-6:
        raise ValueError(
            "Argument `probabilities` must be None, 'proportional', or a list "
            f"or dict of non-negative numbers for {list(sizes)} that sum to 1. "
            f"Received: probabilities={given!r}"
        )
    if temperature is not None:
        drawn = drawn ** (1 / temperature)
    return drawn / drawn.sum()


def check_all_drawn(drawn, sizes):
    if drawn is None:
        return
    widths = np.diff(choice_limits(drawn), prepend=0)
    never = [n for n, w in zip(sizes, widths, strict=True) if w == 0]
    if never:
        raise ValueError(
            "With stop='once' every data set must have a positive probability. "
            f"Received: probabilities {drawn.tolist()}, so {never} would never "
            "be drawn. Leave them out of `datasets`."
        )


def check_seed(seed):
    if (
        isinstance(seed, bool)
        or not isinstance(seed, numbers.Integral)
        or seed < 0
    ):
        raise ValueError(
            "Argument `seed` must be a non-negative integer. Received: "
            f"seed={seed!r}"
        )
