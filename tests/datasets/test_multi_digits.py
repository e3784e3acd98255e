import doctest
import importlib
import sys

import numpy as np
import pytest

from mtlkeras.datasets import multi_digits

TASKS = ("left", "right", "sum_parity", "larger")

# The package exports the function under the name of its module.
module = importlib.import_module("mtlkeras.datasets.multi_digits")


def visible_parts(x):
    """The parts of the left and of the right pictures that nothing covers."""
    left = {canvas[:4, :8].tobytes() for canvas in x}
    right = {canvas[-4:, -8:].tobytes() for canvas in x}
    return left, right


def test_shapes_types_and_range():
    splits = multi_digits(num_train=30, num_val=20, num_test=10, tasks=TASKS)
    for (x, y), num_pairs in zip(splits, (30, 20, 10), strict=True):
        assert x.shape == (num_pairs, 12, 12, 1)
        assert x.dtype == np.float32
        assert x.min() == 0.0
        assert x.max() == 1.0
        assert tuple(y) == TASKS
        for labels in y.values():
            assert labels.shape == (num_pairs,)
            assert labels.dtype == np.int32


def test_defaults():
    (x_train, y_train), (x_val, _), (x_test, _) = multi_digits()
    assert (len(x_train), len(x_val), len(x_test)) == (6000, 1000, 1000)
    assert tuple(y_train) == ("left", "right")


def test_labels_of_derived_tasks():
    for _, y in multi_digits(num_train=2000, tasks=TASKS):
        left, right = y["left"], y["right"]
        assert set(left) == set(right) == set(range(10))
        for row in range(len(left)):
            a, b = int(left[row]), int(right[row])
            larger = 0 if a > b else 1 if a < b else 2
            assert y["sum_parity"][row] == (a + b) % 2
            assert y["larger"][row] == larger
        assert set(y["larger"]) == {0, 1, 2}


def test_pixels_and_labels_belong_to_the_sources():
    from sklearn.datasets import load_digits

    sources = load_digits()
    images = (sources.images / 16).astype("float32")
    (x, y), _, _ = multi_digits(num_train=25, seed=3)
    for picture, left, right in zip(x, y["left"], y["right"], strict=True):
        # Sought by the part that the other picture cannot cover.
        is_left = (images[:, :4] == picture[:4, :8, 0]).all((1, 2))
        is_right = (images[:, -4:] == picture[-4:, -8:, 0]).all((1, 2))
        is_left &= sources.target == left
        is_right &= sources.target == right
        found = False
        for upper_left in images[is_left]:
            for lower_right in images[is_right]:
                canvas = np.zeros((2, 12, 12), "float32")
                canvas[0, :8, :8] = upper_left
                canvas[1, 4:, 4:] = lower_right
                found |= np.array_equal(canvas.max(0), picture[..., 0])
        assert found


def test_no_source_picture_is_in_two_splits(monkeypatch):
    # Sources that carry their own number, also where they overlap.
    numbers = np.arange(1, 1798, dtype="float32")
    images = np.tile(numbers[:, None, None], (1, 8, 8))
    digits = (np.arange(1797) % 10).astype("int64")
    monkeypatch.setattr(module, "load_sources", lambda: (images, digits))
    splits = multi_digits(num_train=20000, num_val=5000, num_test=5000)
    seen = []
    for x, y in splits:
        left, right = x[:, 0, 0, 0], x[:, -1, -1, 0]
        seen.append(set(left) | set(right))
        assert np.array_equal(x[:, 4, 4, 0], np.maximum(left, right))
        assert np.array_equal(y["left"], (left - 1) % 10)
        assert np.array_equal(y["right"], (right - 1) % 10)
    assert [len(numbers) for numbers in seen] == [1197, 300, 300]
    assert set.union(*seen) == set(numbers)


def test_real_splits_share_no_picture():
    splits = multi_digits(num_train=6000, num_val=3000, num_test=3000)
    parts = [visible_parts(x) for x, _ in splits]
    for side in (0, 1):
        train, val, test = (part[side] for part in parts)
        assert not train & val
        assert not train & test
        assert not val & test


def test_seed_decides():
    first, again, other = (
        multi_digits(num_train=50, seed=seed) for seed in (1, 1, 2)
    )
    for (x, y), (x_again, y_again), (x_other, _) in zip(
        first, again, other, strict=True
    ):
        assert np.array_equal(x, x_again)
        assert all(np.array_equal(y[task], y_again[task]) for task in y)
        assert not np.array_equal(x, x_other)


def test_a_split_does_not_depend_on_the_others():
    _, (x_val, y_val), (x_test, y_test) = multi_digits(num_train=10)
    _, val, test = multi_digits(num_train=99, tasks=TASKS)
    assert np.array_equal(x_val, val[0])
    assert np.array_equal(x_test, test[0])
    assert np.array_equal(y_val["left"], val[1]["left"])
    assert np.array_equal(y_test["right"], test[1]["right"])


def test_numpy_state_is_left_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    multi_digits(num_train=10)
    assert np.random.random() == expected


@pytest.mark.parametrize("name", ["num_train", "num_val", "num_test"])
@pytest.mark.parametrize("size", [0, -3, 1.5, True, None, "10"])
def test_bad_size(name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive") as e:
        multi_digits(**{name: size})
    assert f"Received: {name}={size!r}" in str(e.value)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("left", "middle"), r"unknown \['middle'\]"),
        (("left", "left"), "name each task once"),
        ((), "at least one name"),
        ("left", "list or tuple"),
        (None, "list or tuple"),
    ],
)
def test_bad_tasks(tasks, message):
    with pytest.raises(ValueError, match=message):
        multi_digits(tasks=tasks)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="`seed` must be a non-negative"):
        multi_digits(seed=seed)


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError) as e:
        multi_digits()
    assert 'pip install "mtlkeras[datasets]"' in str(e.value)


def test_docstring_example():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
