import numpy as np
import pytest
import scipy.stats
from keras import ops

from mtlkeras.linalg.counter_hash import WORD, random_integers
from mtlkeras.linalg.weighted_choice import choice_limits, weighted_choice

P = [0.1, 0.0, 0.6, 0.3]


def test_arrays_of_counters_are_drawn_one_by_one():
    steps = np.arange(60).reshape(3, 4, 5)
    found = ops.convert_to_numpy(weighted_choice(P, 7, steps))
    assert found.shape == steps.shape
    assert found.dtype == np.int64
    bounds = np.cumsum(P) * WORD
    for step in range(60):
        word = int(random_integers(7, step, 1)[0])
        expected = next(i for i, bound in enumerate(bounds) if word < bound)
        assert found.ravel()[step] == expected
        assert int(weighted_choice(P, 7, step)) == expected


def test_frequencies():
    found = ops.convert_to_numpy(weighted_choice(P, 0, np.arange(20_000)))
    counts = np.bincount(found, minlength=4)
    assert counts[1] == 0
    kept = [0, 2, 3]
    expected = np.array(P)[kept] * 20_000
    assert scipy.stats.chisquare(counts[kept], expected).pvalue > 0.01


@pytest.mark.parametrize("scale", [1, 1e-3, 50])
def test_only_proportions_count(scale):
    limits = choice_limits(np.array(P) * scale)
    assert limits[-1] == WORD
    np.testing.assert_array_equal(limits, choice_limits(P))
