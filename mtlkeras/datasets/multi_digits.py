import numpy as np

from mtlkeras.datasets.arguments import check_seed, check_sizes, check_tasks

CANVAS_SIZE = 12
DIGIT_SIZE = 8

# Sources for validation and for test; the rest, 1,197 of 1,797, train.
NUM_HELD_OUT = 300

# task -> labels [n] from the digits on the left and on the right, both [n]
TASKS = {
    "left": lambda left, right: left,
    "right": lambda left, right: right,
    "sum_parity": lambda left, right: (left + right) % 2,
    "larger": lambda left, right: np.select(
        [left > right, left < right], [0, 1], default=2
    ),
}


def multi_digits(
    num_train=6000,
    num_val=1000,
    num_test=1000,
    tasks=("left", "right"),
    seed=0,
):
    """Loads pairs of overlapping handwritten digits, a real multi-task problem.

    Two 8x8 pictures of handwritten digits lie on one 12x12 canvas, the left one
    in the upper left corner, the right one in the lower right corner; where
    they overlap the brighter pixel is seen. Built in well under a second, with
    no download: the pictures are part of scikit-learn.

    The tasks:

    | name | classes | label |
    |---|---|---|
    | `"left"` | 10 | the digit on the left |
    | `"right"` | 10 | the digit on the right |
    | `"sum_parity"` | 2 | 0: the sum of the digits is even, 1: it is odd |
    | `"larger"` | 3 | 0: left is larger, 1: right is larger, 2: equal |

    The 1,797 source pictures are split before they are paired (1,197 for
    training, 300 for validation, 300 for test), so that no source picture is
    in two splits. Do not split the training pairs again, as `validation_split`
    of `fit` does: the parts would share source pictures. Within a split both
    pictures of a pair are drawn uniformly with replacement.

    The pairs of a split depend on `seed` and on its own size only: the test
    set stays the same when `num_train` or `tasks` change.

    Args:
        num_train: Integer. Number of training pairs. Defaults to `6000`.
        num_val: Integer. Number of validation pairs. Defaults to `1000`.
        num_test: Integer. Number of test pairs. Defaults to `1000`.
        tasks: List or tuple of task names; the labels come in this order.
            Defaults to `("left", "right")`.
        seed: Non-negative integer. Seeds the split of the sources and the
            pairs. Defaults to `0`.

    Returns:
        Three tuples `(x_train, y_train), (x_val, y_val), (x_test, y_test)`.
        `x` is a float32 array of shape `[num_pairs, 12, 12, 1]` with values
        from 0 to 1, `y` a dict of one int32 array of shape `[num_pairs]` per
        task.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If a size is not a positive integer, if a task is unknown,
            named twice or none is named, or if the seed is negative.

    Example:

    >>> (x_train, y_train), (x_val, y_val), (x_test, y_test) = multi_digits(
    ...     num_train=100, tasks=("left", "sum_parity")
    ... )
    >>> x_train.shape
    (100, 12, 12, 1)
    >>> {task: labels.shape for task, labels in y_train.items()}
    {'left': (100,), 'sum_parity': (100,)}

    References:
        - The overlay of two pictures:
          [Sabour et al., 2017](https://arxiv.org/abs/1710.09829) (MultiMNIST)
        - The pictures: E. Alpaydin and C. Kaynak, 1998,
          [Optical Recognition of Handwritten Digits](
          https://doi.org/10.24432/C50P49), UCI Machine Learning Repository;
          its test set, as scikit-learn (BSD 3-Clause) distributes it.
    """
    sizes = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
    check_sizes(**sizes)
    check_tasks(tasks, TASKS)
    check_seed(seed)
    images, digits = load_sources()
    # A stream for the split and one per set: no size changes another set.
    split_rng, *set_rngs = np.random.default_rng(seed).spawn(4)
    sources = np.split(
        split_rng.permutation(len(images)), [-2 * NUM_HELD_OUT, -NUM_HELD_OUT]
    )
    return tuple(
        draw_pairs(images[chosen], digits[chosen], num_pairs, tasks, rng)
        for chosen, num_pairs, rng in zip(
            sources, sizes.values(), set_rngs, strict=True
        )
    )


def draw_pairs(images, digits, num_pairs, tasks, rng):
    left, right = rng.integers(len(images), size=(2, num_pairs))
    x = np.zeros((num_pairs, CANVAS_SIZE, CANVAS_SIZE, 1), "float32")
    x[:, :DIGIT_SIZE, :DIGIT_SIZE, 0] = images[left]
    lower_right = x[:, -DIGIT_SIZE:, -DIGIT_SIZE:, 0]
    np.maximum(lower_right, images[right], out=lower_right)
    y = {
        task: TASKS[task](digits[left], digits[right]).astype("int32")
        for task in tasks
    }
    return x, y


def load_sources():
    """The pictures, float32 `[1797, 8, 8]` in 0..1, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ImportError(
            "`mtlkeras.datasets.multi_digits` takes its pictures from "
            f"scikit-learn, but the package `{error.name}` is not installed. "
            'Install it with: `pip install "mtlkeras[datasets]"`'
        ) from error
    digits = load_digits()
    return (digits.images / 16).astype("float32"), digits.target
