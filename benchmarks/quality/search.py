"""The random search: settings drawn from a space that is data.

A space is a dict from the name of a setting to one of
`{"log_uniform": [low, high]}`, `{"choice": [...]}` and `{"simplex": alpha}`,
task weights from a symmetric Dirichlet distribution, times the number of tasks.
"""

import numpy as np


def draw_setting(space, method, trial, seed, num_tasks):
    """The setting of one trial.

    What all methods search comes from one stream and what a method searches in
    addition from another: no method is lucky in the rates that it may try.
    """
    common = np.random.default_rng([seed, trial, 0])
    own = np.random.default_rng([seed, trial, 1])
    setting = {
        name: draw(choice, common, num_tasks) for name, choice in space.items()
    }
    for name, choice in method.get("search", {}).items():
        setting[name] = draw(choice, own, num_tasks)
    return {**setting, **method.get("fixed", {})}


def draw(choice, generator, num_tasks):
    ((kind, value),) = choice.items()
    if kind == "log_uniform":
        low, high = np.log(value)
        return float(np.exp(generator.uniform(low, high)))
    if kind == "choice":
        return value[int(generator.integers(len(value)))]
    if kind == "simplex":
        weights = generator.dirichlet([value] * num_tasks)
        return (num_tasks * weights).tolist()
    raise ValueError(
        "A setting is drawn by 'log_uniform', 'choice' or 'simplex'. Received: "
        f"{choice!r}"
    )
