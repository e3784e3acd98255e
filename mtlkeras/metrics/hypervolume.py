import numpy as np


def hypervolume(points, reference, higher_is_better=False):
    """Volume that a set of points dominates, up to a reference point.

    Measures a whole set of trade-offs at once, e.g. of runs with different
    task weights: it grows with every point that no other dominates, and
    counts what points do not share. It depends on the reference and on the
    scale of the objectives, so compare only with both fixed, and report them.
    Computed exactly by the library moocore, in any number of objectives.

    Args:
        points: Array of shape `[num_points, num_objectives]`. Points that do
            not dominate the reference add nothing.
        reference: The point where volume ends, worse than those of interest:
            sequence of `num_objectives` numbers.
        higher_is_better: Boolean, or a sequence of one per objective.
            Defaults to `False`: losses.

    Returns:
        Float.

    Raises:
        ImportError: If moocore is not installed.
        ValueError: If shapes do not fit, or a number is not finite.

    Example:

    >>> losses = [[1.0, 3.0], [2.0, 2.0], [3.0, 3.0]]
    >>> hypervolume(losses, reference=[4.0, 4.0])
    5.0

    References:
        - [Zitzler and Thiele, 1999](https://doi.org/10.1109/4235.797969)
        - [moocore](https://multi-objective.github.io/moocore/python/)
    """
    points = np.asarray(points, "float64")
    reference = np.asarray(reference, "float64")
    if (
        points.ndim != 2
        or not points.size
        or reference.shape != points.shape[1:]
    ):
        raise ValueError(
            "Argument `points` must have the shape [num_points, "
            "num_objectives], and `reference` one number per objective. "
            f"Received: points of shape {points.shape}, reference of shape "
            f"{reference.shape}"
        )
    if not np.isfinite(points).all() or not np.isfinite(reference).all():
        raise ValueError(
            "The numbers in `points` and `reference` must be finite. Received: "
            f"{points[~np.isfinite(points).all(1)]} in points, "
            f"reference={reference}. Leave out runs that diverged."
        )
    higher_is_better = np.asarray(higher_is_better, "bool")
    if higher_is_better.shape not in ((), reference.shape):
        raise ValueError(
            "Argument `higher_is_better` must be a boolean, or one per "
            f"objective ({len(reference)}). Received: "
            f"higher_is_better={higher_is_better.tolist()}"
        )
    try:
        import moocore
    except ModuleNotFoundError as error:
        raise ImportError(
            "`mtlkeras.metrics.hypervolume` needs moocore, but the package "
            f"`{error.name}` is not installed. Install it with: "
            '`pip install "mtlkeras[metrics]"`'
        ) from error
    # Losses: signs turned here, so that one direction is used of the library.
    signs = np.where(higher_is_better, -1.0, 1.0)
    return float(moocore.hypervolume(points * signs, ref=reference * signs))
