"""From the results of a tuned experiment to the rows of its table."""

import numpy as np

from benchmarks.quality import evidence
from benchmarks.quality.methods import METHODS
from benchmarks.quality.protocols import chosen_settings, key_of, networks
from benchmarks.quality.protocols import test_cells as cells_of_test
from mtlkeras.metrics import delta_m, mean_rank


class Summary:
    """What the test runs of an experiment say.

    Attributes:
        rows: Dict from method to a dict: `values` (metric -> value per seed),
            `by_metric` and `by_task` (delta-m per seed), `by_seconds` (the
            same by task for the setting chosen in equal seconds), `rank`,
            `seconds`, `training_seconds`, `steps`, `peak_bytes`, `setting`,
            `errors`, and `against` (baseline -> comparison).
        unfinished: Methods without all of their test runs.
        undefined: Dict from method to why it cannot run on the problem.
    """

    def __init__(self, config, results):
        self.config = config
        self.results = results
        first = next(iter(results.values()))
        self.task_names = first["task_names"]
        self.directions = {
            name: about["higher_is_better"]
            for name, about in first["metrics"].items()
        }
        self.groups = {
            task: [
                name
                for name, about in first["metrics"].items()
                if about["task"] == task
            ]
            for task in self.task_names
        }
        self.rows, self.undefined, self.unfinished = {}, {}, []
        for method in config["methods"]:
            self._add(method)
        self._relate()

    def _add(self, method):
        """The runs of a method, put together over its networks."""
        cells = self.results.get(method, {}).get("cells", [])
        errors = [cell["error"] for cell in cells if cell["error"]]
        if cells and len(errors) == len(cells):
            self.undefined[method] = errors[0]
            return
        chosen = [self._chosen(method, choice) for choice in (0, -1)]
        if chosen[0] is None:
            self.unfinished.append(method)
            return
        self.rows[method] = {
            "values": metrics_of(chosen[0]),
            "in_seconds": chosen[1] and metrics_of(chosen[1]),
            "setting": [runs[0]["setting"] for runs in chosen[0]],
            "seconds": total(chosen[0], "seconds"),
            "training_seconds": total(chosen[0], "training_seconds"),
            "steps": total(chosen[0], "steps"),
            "peak_bytes": max(
                run["peak_bytes"] for runs in chosen[0] for run in runs
            ),
            "errors": len(errors),
        }

    def _chosen(self, method, choice):
        """For each network the runs of its chosen setting, one per seed."""
        done = {
            key_of(cell): cell
            for cell in self.results.get(method, {}).get("cells", [])
        }
        found = []
        for tasks in networks(method, self.task_names):
            settings = chosen_settings(
                self.config, method, done, self.results, tasks
            )
            if not settings:
                return None
            wanted = cells_of_test(self.config, tasks, settings[choice])
            runs = [done.get(key_of(cell)) for cell in wanted]
            if not all(run and run["test"] for run in runs):
                return None
            found.append(runs)
        return found

    def _relate(self):
        """Gains over the reference, ranks, and tests against baselines."""
        reference = self.rows.get(self.config["reference"])
        if reference is None:
            return
        base = {n: np.mean(v) for n, v in reference["values"].items()}
        for row in self.rows.values():
            row["by_metric"] = delta_m(row["values"], base, self.directions)
            row["by_task"] = delta_m(
                row["values"], base, self.directions, self.groups
            )
            row["by_seconds"] = row["in_seconds"] and delta_m(
                row["in_seconds"], base, self.directions, self.groups
            )
            row["against"] = {}
        ranks = mean_rank(
            {
                method: {n: np.mean(v) for n, v in row["values"].items()}
                for method, row in self.rows.items()
            },
            self.directions,
        )
        for method, rank in ranks.items():
            self.rows[method]["rank"] = rank
        for baseline in self.config["baselines"]:
            if baseline in self.rows:
                self._compare(baseline)

    def _compare(self, baseline):
        """All other shared networks against one, corrected for how many."""
        other = self.rows[baseline]["by_task"]
        found = {
            method: evidence.compare(row["by_task"], other)
            for method, row in self.rows.items()
            if method != baseline and not METHODS[method].get("separate")
        }
        corrected = evidence.correct({m: c["p"] for m, c in found.items()})
        for method, comparison in found.items():
            p = corrected.get(method)
            self.rows[method]["against"][baseline] = {
                **comparison,
                "corrected": p,
                "verdict": evidence.verdict(comparison, p),
            }

    def order(self):
        """The methods, the best mean delta-m by task first."""
        return sorted(self.rows, key=lambda m: self.rows[m]["by_task"].mean())

    def friedman(self):
        """p of Friedman's test over the shared networks."""
        return evidence.friedman(
            {
                method: row["by_task"]
                for method, row in self.rows.items()
                if not METHODS[method].get("separate")
            }
        )


def metrics_of(networks):
    """Dict from metric to an array over seeds, over all networks."""
    return {
        name: np.array([run["test"][name] for run in runs])
        for runs in networks
        for name in runs[0]["test"]
    }


def total(networks, key):
    """Mean over seeds of the sum over networks."""
    return float(
        np.sum([np.mean([run[key] for run in runs]) for runs in networks])
    )
