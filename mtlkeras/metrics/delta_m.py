import numpy as np


def delta_m(values, baselines, higher_is_better, groups=None):
    """Mean relative gain over baselines in percent; negative is better.

    The number by which papers on multi-task learning compare methods that are
    measured by metrics of unlike kinds, usually against one network per task:

    ```
    delta_m = 100 / N * sum_i sign_i * (value_i - baseline_i) / |baseline_i|
    sign_i = -1 where higher is better, else +1
    ```

    Tasks with many metrics weigh more in it. With `groups` each task weighs
    the same: the mean over the metrics of a task, then over the tasks. Papers
    use both and do not always say which, so say which when you report one.

    Args:
        values: Dict from metric to its value, or a sequence. A dict may hold
            more than the metrics of `baselines`, e.g. all that
            `model.evaluate(..., return_dict=True)` returns. A value may be an
            array, e.g. of one entry per seed or epoch.
        baselines: Dict from metric to its baseline, or a sequence.
        higher_is_better: Boolean per metric, as a dict or a sequence, or one
            boolean for all.
        groups: Dict from task to the list of its metrics, or a list of such
            lists (of positions, where the metrics are a sequence), with every
            metric in exactly one. Defaults to `None`: every metric weighs the
            same.

    Returns:
        Float, or an array where the values are arrays.

    Raises:
        ValueError: If a metric is missing or named twice, or a baseline is 0
            or not finite.

    Example:

    >>> baselines = {"accuracy": 0.80, "error": 2.0, "angle": 10.0}
    >>> values = {"accuracy": 0.88, "error": 1.5, "angle": 11.0}
    >>> better = {"accuracy": True, "error": False, "angle": False}
    >>> round(delta_m(values, baselines, better), 2)
    -8.33
    >>> groups = {"class": ["accuracy"], "surface": ["error", "angle"]}
    >>> round(delta_m(values, baselines, better, groups), 2)
    -8.75

    Departures: the papers divide by the baseline. Here it is its absolute
    value, or the sign would turn for a negative baseline.

    References:
        - [Maninis et al., 2019](https://arxiv.org/abs/1904.08918), with one
          metric per task and the opposite sign
        - [Navon et al., 2022](https://arxiv.org/abs/2202.01017) (Nash-MTL):
          this sign, every metric the same weight
    """
    gains = relative_gains(values, baselines, higher_is_better)
    if groups is None:
        result = np.mean(list(gains.values()), axis=0)
    else:
        result = np.mean(
            [
                np.mean([gains[name] for name in group], axis=0)
                for group in check_groups(groups, gains)
            ],
            axis=0,
        )
    return float(result) if np.ndim(result) == 0 else result


def relative_gains(values, baselines, higher_is_better):
    """Percent by which every metric changed; negative where it is better."""
    baselines = as_dict(baselines)
    if not baselines:
        raise ValueError(
            "Argument `baselines` must hold at least one metric. Received: "
            f"baselines={baselines!r}"
        )
    values = as_dict(values)
    higher_is_better = check_directions(higher_is_better, baselines)
    missing = [name for name in baselines if name not in values]
    if missing:
        raise ValueError(
            "Argument `values` must hold every metric of `baselines`. "
            f"Received: values for {list(values)}, without {missing}. Measure "
            "them, or leave them out of `baselines`."
        )
    gains = {}
    for name, baseline in baselines.items():
        baseline = float(baseline)
        if not np.isfinite(baseline) or baseline == 0:
            raise ValueError(
                "A baseline must be finite and not 0, since gains are relative "
                f"to it. Received: {baseline} for {name!r}. Choose a metric "
                "whose baseline is not 0, e.g. the error for the accuracy."
            )
        change = (np.asarray(values[name], "float64") - baseline) / abs(
            baseline
        )
        gains[name] = 100.0 * (-change if higher_is_better[name] else change)
    return gains


def as_dict(metrics):
    """A dict as it is; a sequence by its positions."""
    return metrics if isinstance(metrics, dict) else dict(enumerate(metrics))


def check_directions(higher_is_better, metrics):
    """Dict from every metric to a boolean."""
    if isinstance(higher_is_better, (bool, np.bool_)):
        return dict.fromkeys(metrics, bool(higher_is_better))
    given = as_dict(higher_is_better)
    if set(given) != set(metrics) or not all(
        value in (True, False) for value in given.values()
    ):
        raise ValueError(
            "Argument `higher_is_better` must hold one boolean for each of the "
            f"metrics {list(metrics)}. Received: "
            f"higher_is_better={higher_is_better!r}"
        )
    return given


def check_groups(groups, metrics):
    """List of lists of metrics, every metric in exactly one."""
    lists = list(groups.values()) if isinstance(groups, dict) else list(groups)
    named = [
        name for group in lists if not isinstance(group, str) for name in group
    ]
    if sorted(map(repr, named)) != sorted(map(repr, metrics)) or not all(lists):
        raise ValueError(
            "Argument `groups` must hold lists of metrics, none empty, with "
            f"each of the metrics {list(metrics)} in exactly one. Received: "
            f"groups={groups!r}"
        )
    return lists
