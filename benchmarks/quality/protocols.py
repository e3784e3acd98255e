"""Which cells an experiment has, and which are still to be computed.

A cell is one run: a method, a setting and a seed. The rest of the harness knows
no more of the protocol than `missing_cells`.
"""

import itertools
import statistics

from benchmarks.quality.methods import METHODS
from benchmarks.quality.search import draw_setting


def missing_cells(config, results, task_names):
    """Dict from method to the cells that can be run now and were not.

    Args:
        config: An experiment.
        results: Dict from method to its result, as far as there are any.
        task_names: The tasks of the problem.
    """
    plan = {"sweep": plan_sweep, "tuned": plan_tuned}[config["protocol"]]
    missing = {}
    for method in config["methods"]:
        done = {
            key_of(cell): cell
            for cell in results.get(method, {}).get("cells", [])
        }
        wanted = plan(config, method, done, results, task_names)
        left = [cell for cell in wanted if key_of(cell) not in done]
        if left:
            missing[method] = left
    return missing


def key_of(cell):
    """What identifies a cell within its method."""
    setting = tuple(sorted((k, str(v)) for k, v in cell["setting"].items()))
    return cell["stage"], tuple(cell["tasks"]), setting, cell["seed"]


def plan_sweep(config, method, done, results, task_names):
    """Every setting of the grid with every seed; nothing is chosen."""
    names = list(config["grid"])
    return [
        {
            "stage": "test",
            "tasks": list(task_names),
            "setting": dict(zip(names, values, strict=True)),
            "seed": seed,
        }
        for values in itertools.product(*config["grid"].values())
        for seed in range(config["seeds"])
    ]


def plan_tuned(config, method, done, results, task_names):
    """All trials first, then the chosen settings with fresh seeds."""
    cells = []
    for tasks in networks(method, task_names):
        cells += trial_cells(config, method, tasks)
        for setting in chosen_settings(config, method, done, results, tasks):
            for cell in test_cells(config, tasks, setting):
                if cell not in cells:
                    cells.append(cell)
    return cells


def trial_cells(config, method, tasks):
    """The search: validation only, one seed."""
    return [
        {
            "stage": "trial",
            "tasks": list(tasks),
            "setting": draw_setting(
                config["space"],
                METHODS[method],
                trial,
                config["search_seed"],
                len(tasks),
            ),
            "seed": config["search_seed"],
        }
        for trial in range(config["trials"])
    ]


def test_cells(config, tasks, setting):
    """A chosen setting with seeds that the search has not seen."""
    first = config["search_seed"] + 1
    return [
        {
            "stage": "test",
            "tasks": list(tasks),
            "setting": setting,
            "seed": seed,
        }
        for seed in range(first, first + config["seeds"])
    ]


def chosen_settings(config, method, done, results, tasks):
    """The settings chosen by equal trials and, if known, by equal seconds.

    Args:
        done: Dict from `key_of` to cell, of this method.

    Returns:
        A list with none, one or two settings.
    """
    trials = [done.get(key_of(t)) for t in trial_cells(config, method, tasks)]
    if None in trials:
        return []
    chosen = [choose(trials)]
    budget = seconds_budget(config, results)
    if budget is not None:
        chosen.append(choose(trials, budget))
    return [setting for setting in chosen if setting is not None]


def networks(method, task_names):
    """The task names of each network that a method trains."""
    if METHODS[method].get("separate"):
        return [(name,) for name in task_names]
    return [tuple(task_names)]


def choose(trials, budget=None):
    """The setting of the best trial by its validation score, lower is better.

    With `budget`, of the first trials that fit into so many seconds of
    training; at least of one.
    """
    spent, best = 0.0, None
    for index, trial in enumerate(trials):
        spent += trial["training_seconds"]
        if budget is not None and index and spent > budget:
            break
        if trial["score"] is None:
            continue
        if best is None or trial["score"] < best["score"]:
            best = trial
    return best and best["setting"]


def seconds_budget(config, results):
    """What the trials of the first baseline took, once all of them have run."""
    cells = results.get(config["baselines"][0], {}).get("cells", [])
    trials = [c for c in cells if c["stage"] == "trial"]
    if len(trials) < config["trials"]:
        return None
    # Not their sum: one trial that was disturbed would be a gift to all.
    seconds = [trial["training_seconds"] for trial in trials]
    return config["trials"] * statistics.median(seconds)
