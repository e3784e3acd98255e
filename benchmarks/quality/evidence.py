"""What a comparison shows: intervals and tests, all of them SciPy's and
statsmodels'."""

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.05


def interval(values):
    """Mean and half of its 95 % interval (Student's t)."""
    values = np.asarray(values, "float64")
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, 0.0 if len(values) > 1 else float("nan")
    found = stats.ttest_1samp(values, 0.0).confidence_interval(1 - LEVEL)
    return mean, float(found.high - found.low) / 2


def compare(values, baseline):
    """Paired comparison of two methods, entry by entry the same seed.

    Returns:
        Dict with the mean difference, half of its 95 % interval, and the p of
        the paired t-test and of Wilcoxon's signed-rank test. The latter cannot
        be below `2 / 2**n` for `n` seeds, which no correction for forty
        methods survives; it is there for whom normality worries.
    """
    difference = np.asarray(values, "float64") - np.asarray(baseline, "float64")
    mean, half = interval(difference)
    if np.ptp(difference) == 0:
        # The same numbers, or too few of them for a test.
        same = len(difference) > 1 and mean == 0
        p = wilcoxon = 1.0 if same else float("nan")
    else:
        p = float(stats.ttest_rel(values, baseline).pvalue)
        wilcoxon = float(stats.wilcoxon(difference).pvalue)
    return {"difference": mean, "half": half, "p": p, "wilcoxon": wilcoxon}


def correct(p_values):
    """Dict from method to p after Holm; methods without a p have none."""
    known = {m: p for m, p in p_values.items() if np.isfinite(p)}
    if not known:
        return {}
    corrected = multipletests(list(known.values()), LEVEL, "holm")[1]
    return dict(zip(known, map(float, corrected), strict=True))


def friedman(table):
    """p of Friedman's test that all methods rank alike over the seeds.

    Args:
        table: Dict from method to its values, one per seed.
    """
    columns = list(table.values())
    if len(columns) < 3 or len(columns[0]) < 2:
        return float("nan")
    return float(stats.friedmanchisquare(*columns).pvalue)


def verdict(comparison, corrected):
    """`"better"` or `"worse"` (lower is better), or that nothing shows it."""
    if corrected is None or not corrected < LEVEL:
        return "no evidence"
    return "better" if comparison["difference"] < 0 else "worse"
