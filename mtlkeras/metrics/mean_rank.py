import numpy as np

from mtlkeras.metrics.delta_m import as_dict, check_directions


def mean_rank(values, higher_is_better):
    """Mean rank of each method over the metrics; 1 is the best of all.

    For every metric the methods are ranked, 1 for the best, ties sharing the
    mean of their ranks; a method's ranks are then averaged. It needs no
    baseline and does not ask by how much a method is better, and it depends on
    which methods are compared: look at `delta_m`, too.

    Args:
        values: Dict from method to its metrics, each a dict from metric to
            value, or a sequence. All methods have the same metrics.
        higher_is_better: Boolean per metric, as a dict or a sequence, or one
            boolean for all.

    Returns:
        Dict from method to its mean rank, a float.

    Raises:
        ValueError: If methods have unlike metrics, or a value is NaN.

    Example:

    >>> values = {
    ...     "joint": {"accuracy": 0.90, "error": 2.0},
    ...     "pcgrad": {"accuracy": 0.92, "error": 2.1},
    ...     "mgda": {"accuracy": 0.88, "error": 2.0},
    ... }
    >>> mean_rank(values, {"accuracy": True, "error": False})
    {'joint': 1.75, 'pcgrad': 2.0, 'mgda': 2.25}

    References:
        - "MR" in the tables of [Navon et al., 2022](
          https://arxiv.org/abs/2202.01017) (Nash-MTL)
    """
    if not isinstance(values, dict) or not values:
        raise ValueError(
            "Argument `values` must be a dict from method to its metrics. "
            f"Received: values={values!r}"
        )
    rows = {method: as_dict(metrics) for method, metrics in values.items()}
    metrics = next(iter(rows.values()))
    unlike = [m for m, row in rows.items() if set(row) != set(metrics)]
    if unlike or not metrics:
        raise ValueError(
            "All methods in `values` must have the same metrics, at least one. "
            f"Received: {list(metrics)} for {next(iter(rows))!r}, and others "
            f"for {unlike}"
        )
    higher_is_better = check_directions(higher_is_better, metrics)
    signs = [-1.0 if higher_is_better[name] else 1.0 for name in metrics]
    table = signs * np.array(
        [[row[name] for name in metrics] for row in rows.values()], "float64"
    )  # [num_methods, num_metrics], lower is better
    if np.isnan(table).any():
        raise ValueError(
            "Ranks need a value for every method and metric. Received NaN for "
            f"{[m for m, r in zip(rows, table, strict=True) if any(r != r)]}. "
            "Leave out these methods or metrics."
        )
    better = (table[None] < table[:, None]).sum(1)
    equal = (table[None] == table[:, None]).sum(1)  # with itself
    ranks = better + (equal + 1) / 2
    return dict(zip(rows, ranks.mean(1).tolist(), strict=True))
