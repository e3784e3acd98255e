"""Patches of a real stereo pair, with disparity and its jumps as targets.

For `dense_prediction.py --stereo`. The pair is `stereo_motorcycle` of
scikit-image (500 x 741 pixels, from the Middlebury Stereo 2014 data sets); it
ships inside the package. It is one scene, so results on it are a check on real
pixels and not a score.
"""

import numpy as np

SIZE = 64
SHIFTS = range(0, 64, 2)  # the largest disparity of the pair is 60 pixels
TEST_ROWS = (186, 314)  # two rows of patches, from the middle of the picture
STRIDE = 16  # between training patches, which overlap; test patches do not
JUMP = 2.0  # pixels of disparity between neighbours that make an edge
UNIT = 10.0  # disparity is learned in units of ten pixels


def load_pair():
    """Left and right picture, uint8, and the disparity; invalid is inf."""
    try:
        from skimage.data import stereo_motorcycle
    except ModuleNotFoundError as error:
        raise SystemExit(
            "`--stereo` takes its pictures from scikit-image, but the package "
            f"`{error.name}` is not installed. Install it with: "
            "`pip install scikit-image`"
        ) from error
    return stereo_motorcycle()


def stereo_patches(left, right, disparity):
    """Cuts patches of 64 x 64 pixels and splits them by rows of the picture.

    A rectified pair is matched within rows. So no pixel of either picture is
    part of both training and test patches.

    The channels of a patch: the colours of the left picture, the disparity
    that block matching finds in it, and how well that matches.

    Returns:
        `(x_train, y_train), (x_test, y_test)`; `y` has the tasks
        `"disparity"`, in units of ten pixels, and `"jumps"`, 1 beside a jump
        of it. NaN where the disparity is not known: unlabelled for mtlkeras.
    """
    left = left.astype("float32") / 255
    right = right.astype("float32") / 255
    first_column = max(SHIFTS)  # from here on no shift leaves the picture
    left, width = left[:, first_column:], left.shape[1]
    differences = [
        np.abs(left - right[:, first_column - shift : width - shift]).mean(-1)
        for shift in SHIFTS
    ]
    differences = np.stack(differences, -1)
    disparity = np.where(np.isfinite(disparity), disparity, np.nan)
    disparity = disparity[:, first_column:, None].astype("float32")
    y = {"disparity": disparity / UNIT, "jumps": find_jumps(disparity)}

    height, width = disparity.shape[:2]  # from `first_column` on
    top, bottom = TEST_ROWS
    rows = [
        *range(0, top - SIZE + 1, STRIDE),
        *range(bottom, height - SIZE + 1, STRIDE),
    ]
    train = corners(rows, range(0, width - SIZE + 1, STRIDE))
    test = corners(
        range(top, bottom - SIZE + 1, SIZE), range(0, width - SIZE + 1, SIZE)
    )
    return tuple(
        (
            np.concatenate(
                [cut(left, chosen), *block_matching(cut(differences, chosen))],
                axis=-1,
            ),
            {task: cut(targets, chosen) for task, targets in y.items()},
        )
        for chosen in (train, test)
    )


def corners(rows, columns):
    return [(row, column) for row in rows for column in columns]


def cut(picture, corners):
    return np.stack(
        [picture[row : row + SIZE, col : col + SIZE] for row, col in corners]
    )


def block_matching(differences):
    """The shift with the least difference, averaged over 9 x 9 pixels.

    Args:
        differences: Array `[num_patches, size, size, num_shifts]`. Each patch
            is matched by itself: it sees nothing beyond its border.

    Returns:
        Disparity and difference, `[num_patches, size, size, 1]` each.
    """
    from scipy.ndimage import uniform_filter  # comes with scikit-image

    costs = uniform_filter(differences, (0, 9, 9, 0), mode="nearest")
    best = np.array(SHIFTS)[costs.argmin(-1)]
    disparity = best[..., None].astype("float32") / UNIT
    return disparity, costs.min(-1, keepdims=True)


def find_jumps(disparity):
    """1 beside a jump, 0 where there is none, NaN where nobody knows."""
    jump = np.zeros(disparity.shape, bool)
    unknown = np.isnan(disparity)
    for axis in (0, 1):
        size = disparity.shape[axis]
        step = np.abs(np.diff(disparity, axis=axis))  # NaN is not a jump
        for part in (slice(0, size - 1), slice(1, size)):
            index = (part,) if axis == 0 else (slice(None), part)
            jump[index] |= step > JUMP
            unknown[index] |= np.isnan(step)
    return np.where(jump, 1, np.where(unknown, np.nan, 0)).astype("float32")


def as_strip(patches):
    """Test patches side by side again, as they were in the picture."""
    rows = (TEST_ROWS[1] - TEST_ROWS[0]) // SIZE
    columns = len(patches) // rows
    grid = patches.reshape(rows, columns, *patches.shape[1:])
    return np.concatenate([np.concatenate(row, axis=1) for row in grid])
