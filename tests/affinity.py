"""Selective task group updates once more: formulas in plain loops."""

import warnings

import numpy as np
from sklearn.cluster import AffinityPropagation


def credited(affinity, before, after, stepped, decay):
    """The affinities after a step of some tasks.

    Args:
        affinity: Array `[num_tasks, num_tasks]`.
        before: List of the losses before the step, NaN where unknown.
        after: List of the losses after it.
        stepped: List of booleans, the tasks that made the step.
        decay: Float.
    """
    affinity = np.array(affinity, "float64")
    group = [s for s, flag in enumerate(stepped) if flag]
    gain = {}
    for t, (a, b) in enumerate(zip(before, after, strict=True)):
        if np.isfinite(a) and np.isfinite(b) and a != 0:
            gain[t] = (float(a) - float(b)) / abs(float(a)) / len(group or [0])
    for s in group:
        for t in gain:
            if s not in gain:
                continue
            value = gain[t]
            if t == s and value < 0:
                continue
            if t in group and gain[s] * gain[t] < 0:
                value = -max(gain[s], gain[t])
            affinity[s, t] = (1 - decay) * affinity[s, t] + decay * value
    return affinity


def groups(affinity, names, preference):
    """The partition, by the estimator of scikit-learn."""
    affinity = np.array(affinity)
    known = [i for i in range(len(names)) if affinity[i, i] > 0]
    relative = np.array(
        [[affinity[s, t] / affinity[t, t] for t in known] for s in known]
    )
    similarity = (relative + relative.T) / 2
    if preference == "median":
        preference = np.median(similarity)
    labels = range(len(known))
    if len(known) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = AffinityPropagation(
                affinity="precomputed",
                preference=preference,
                convergence_iter=50,
                max_iter=1000,
                random_state=0,
            ).fit_predict(similarity)
    label_of = dict(zip(known, labels, strict=True))
    found = {}
    for i, name in enumerate(names):
        found.setdefault(label_of.get(i, f"alone {i}"), []).append(name)
    return tuple(map(tuple, found.values()))
