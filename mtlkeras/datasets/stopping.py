"""When a data set made of several ends."""

import numbers

import numpy as np

BLOCK = 2**14  # draws looked at together
MOST_DRAWS = 10**8  # what a count of draws may take: about a minute

STOPS = ("first_exhausted", "all_exhausted")


def check_stop(stop, sizes, stops):
    """Raises unless it is known when to stop.

    Args:
        stop: One of `stops`, a positive integer or `None`.
        sizes: Dict from name to a number of batches, infinity or `None`.
        stops: Tuple of strings.
    """
    if stop is None or (
        isinstance(stop, numbers.Integral)
        and not isinstance(stop, bool)
        and stop > 0
    ):
        return
    if stop not in stops:
        raise ValueError(
            f"Argument `stop` must be one of {list(stops)}, a positive number "
            f"of batches, or `None` to go on forever. Received: stop={stop!r}"
        )
    if stop in STOPS:
        check_known(f"stop={stop!r}", sizes)
    infinite = [name for name, size in sizes.items() if size == float("inf")]
    if infinite and (stop != "first_exhausted" or len(infinite) == len(sizes)):
        raise ValueError(
            f"With stop={stop!r} data sets must end. Received: {infinite}, "
            "which are infinite. Pass a number of batches as `stop`, or leave "
            "out `repeat()`."
        )


def check_known(argument, sizes):
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown:
        raise ValueError(
            f"With {argument} the number of batches of every data set must be "
            f"known. Received: {unknown}, whose cardinality TensorFlow cannot "
            "tell. Pass a number of batches as `stop`, or state it with "
            "`dataset.apply(tf.data.experimental.assert_cardinality(n))`."
        )


def count_draws(select, sizes, probabilities, stop):
    """Number of draws until the first or all data sets are exhausted.

    Args:
        select: Function from an array of numbers of batches to indices.
        sizes: List of numbers of batches; infinity is allowed.
        probabilities: Sequence of their probabilities.
        stop: `"first_exhausted"`: before the first draw of a data set that has
            nothing left; `"all_exhausted"`: after every data set was drawn as
            often as it has batches.
    """
    first = stop == "first_exhausted"
    wanted = np.asarray(sizes, "float64") + first
    with np.errstate(divide="ignore"):
        expected = wanted / (probabilities / np.sum(probabilities))
    if (expected.min() if first else expected.max()) > MOST_DRAWS:
        raise ValueError(
            f"With stop={stop!r} the data sets must be drawn often enough to "
            f"come to their end. Received: probabilities {list(probabilities)}"
            f" for data sets of {list(sizes)} batches. Pass a number of "
            "batches as `stop`, or other probabilities."
        )
    counts = np.zeros(len(wanted), "int64")
    ends = np.full(len(wanted), np.inf)
    start = 0
    while np.isinf(ends).all() if first else np.isinf(ends).any():
        drawn = np.asarray(select(np.arange(start, start + BLOCK)))
        for index in np.flatnonzero(np.isinf(ends)):
            places = np.flatnonzero(drawn == index)
            if counts[index] + len(places) >= wanted[index]:
                place = places[int(wanted[index]) - counts[index] - 1]
                ends[index] = start + place
            counts[index] += len(places)
        start += BLOCK
    return int(ends.min()) if first else int(ends.max()) + 1
