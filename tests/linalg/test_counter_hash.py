"""The hash against a NumPy implementation on uint32, which wraps by itself."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtlkeras.linalg import counter_hash
from mtlkeras.linalg.counter_hash import random_integers, random_permutation

COUNTERS = [0, 1, 2, 7, 1000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1]
SEEDS = [0, 1, 1234, 2**31 - 1, 2**32 + 5]


def lowbias32(x):
    """The published 32-bit mix (hash-prospector's lowbias32), on uint32."""
    x = np.asarray(x, "uint32").copy()
    with np.errstate(over="ignore"):
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return x


def lowbias32_inverse(x):
    """Its published inverse: other constants than ours."""
    x = np.asarray(x, "uint32").copy()
    with np.errstate(over="ignore"):
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x43021123)
        x ^= (x >> np.uint32(15)) ^ (x >> np.uint32(30))
        x *= np.uint32(0x1D69E2A5)
        x ^= x >> np.uint32(16)
    return x


def reference(seed, counter, size):
    low = np.uint32(counter % 2**32)
    high = np.uint32(counter // 2**32)
    state = lowbias32(seed % 2**32)
    state = lowbias32(state ^ low)
    state = lowbias32(state ^ high)
    with np.errstate(over="ignore"):
        index = np.arange(1, size + 1, dtype="uint32") * np.uint32(0x9E3779B1)
    return lowbias32(state ^ index)


def draw_many(function, seed, draws, size):
    """`[draws, size]`, for the counters 0, 1, ..., in one graph."""

    @tf.function
    def run():
        return tf.map_fn(
            lambda counter: function(seed, counter, size),
            tf.range(draws, dtype=tf.int64),
        )

    return run().numpy()


def test_mix_is_the_published_one():
    words = np.concatenate(
        [
            np.arange(1000),
            2**32 - 1 - np.arange(1000),
            np.random.default_rng(0).integers(0, 2**32, 20_000),
        ]
    )
    mixed = counter_hash._mix(keras.ops.convert_to_tensor(words)).numpy()
    assert mixed.min() >= 0
    assert mixed.max() < 2**32
    np.testing.assert_array_equal(mixed, lowbias32(words))
    np.testing.assert_array_equal(lowbias32_inverse(mixed), words)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_integers_equal_numpy(seed):
    for counter in COUNTERS:
        drawn = random_integers(seed, counter, 9)
        assert drawn.dtype == tf.int64
        np.testing.assert_array_equal(drawn, reference(seed, counter, 9))


def test_both_halves_of_the_counter_count():
    rows = [tuple(reference(3, c, 4)) for c in COUNTERS]
    assert len(set(rows)) == len(COUNTERS)
    drawn = [tuple(random_integers(3, c, 4).numpy()) for c in COUNTERS]
    assert drawn == rows


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_counter_of_any_integer_dtype(dtype):
    counter = tf.constant(77, dtype)
    np.testing.assert_array_equal(
        random_integers(5, counter, 6), reference(5, 77, 6)
    )


@pytest.mark.parametrize("function", [random_integers, random_permutation])
def test_same_in_eager_graph_and_xla(function):
    def draw(counter):
        return function(99, counter, 11)

    in_graph = tf.function(draw)
    in_xla = tf.function(draw, jit_compile=True)
    for counter in COUNTERS:
        counter = tf.constant(counter, tf.int64)
        eager = draw(counter).numpy()
        np.testing.assert_array_equal(in_graph(counter), eager)
        np.testing.assert_array_equal(in_xla(counter), eager)


def test_integers_are_uniform_and_independent():
    draws = draw_many(random_integers, 0, 2000, 8)
    uniform = draws / 2**32
    count = uniform.size
    assert abs(uniform.mean() - 0.5) < 4 * math.sqrt(1 / 12 / count)
    cells = np.bincount((uniform * 64).astype(int).ravel(), minlength=64)
    chi_square = np.sum((cells - count / 64) ** 2) / (count / 64)
    assert abs(chi_square - 63) < 4 * math.sqrt(2 * 63)
    # Neighbours: in the row, and at the same place one counter later.
    centred = uniform - uniform.mean()
    for a, b in [
        (centred[:, :-1], centred[:, 1:]),
        (centred[:-1], centred[1:]),
    ]:
        correlation = np.mean(a * b) / centred.var()
        assert abs(correlation) < 4 / math.sqrt(a.size)
    # Bits, one by one.
    bits = (draws[..., None] >> np.arange(32)) & 1
    assert np.all(np.abs(bits.mean((0, 1)) - 0.5) < 5 * 0.5 / math.sqrt(count))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 40])
def test_permutations_are_valid(size):
    assert random_permutation(4, 0, size).dtype == tf.int64
    drawn = draw_many(random_permutation, 4, 30, size)
    np.testing.assert_array_equal(
        np.sort(drawn), np.broadcast_to(np.arange(size), (30, size))
    )
    assert size < 3 or len({tuple(row) for row in drawn}) > 1


def test_permutation_sorts_the_integers():
    drawn = draw_many(random_permutation, 8, 50, 7)
    for counter in range(50):
        words = reference(8, counter, 7)
        np.testing.assert_array_equal(
            drawn[counter], np.argsort(words, kind="stable")
        )


def test_permutation_breaks_ties_by_index(monkeypatch):
    monkeypatch.setattr(
        counter_hash,
        "random_integers",
        lambda seed, counter, size: tf.constant(
            [9, 2**32 - 1, 9, 0, 9], tf.int64
        ),
    )
    for jit_compile in (False, True):
        draw = tf.function(
            lambda: counter_hash.random_permutation(0, 0, 5),
            jit_compile=jit_compile,
        )
        np.testing.assert_array_equal(draw(), [3, 0, 2, 4, 1])


def test_permutations_are_uniform():
    draws = 3000
    drawn = draw_many(random_permutation, 0, draws, 3)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(kinds) == 6
    expected = draws / 6
    chi_square = np.sum((counts - expected) ** 2) / expected
    assert chi_square < 5 + 4 * math.sqrt(10)
