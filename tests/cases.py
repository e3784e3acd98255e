"""One line per public object: every line inherits the checks of all files.

To add a strategy, add a line to `STRATEGIES` (for the tasks of `nets.TASKS`)
and its name to `PUBLIC`.
"""

import keras

from mtlkeras import strategies


class Case:
    """A strategy to test, and a short id for pytest."""

    def __init__(self, strategy, id=None):
        self.given = strategy
        self.id = id or strategy

    def strategy(self):
        """A new object, since a strategy remembers the tasks it is bound to."""
        if isinstance(self.given, str):
            return strategies.get(self.given)
        return type(self.given).from_config(self.given.get_config())

    def visits(self, task_names, step, draw=0):
        """`(group index, task names)` in the order that batch `step` visits.

        Args:
            task_names: Tuple of strings.
            step: Number of the batch.
            draw: The batch number at the last epoch's end, for strategies that
                draw groups once per epoch.
        """
        strategy = self.strategy()
        strategy.bind(task_names)
        groups = strategy.task_groups(task_names)
        if strategy.regroups != "never":
            draw = step if strategy.regroups == "step" else draw
            assigned = keras.ops.convert_to_numpy(strategy.assign_groups(draw))
            groups = [
                tuple(
                    name
                    for name, index in zip(task_names, assigned, strict=True)
                    if index == group
                )
                for group in range(len(groups))
            ]
        order = range(len(groups))
        if strategy.one_group_per_step:
            order = [int(strategy.select_group(step))]
        elif strategy.shuffle:
            order = [int(k) for k in strategy.order_groups(step)]
        return [(k, groups[k]) for k in order]

    def __repr__(self):
        return self.id


STRATEGIES = [
    Case("joint"),
    Case("alternating"),
    Case(strategies.Alternating(shuffle=True, seed=1), "alternating_shuffled"),
    Case(strategies.Alternating(task_slots=False), "alternating_one_state"),
    Case(strategies.Grouped([["right"], ["left", "middle"]]), "grouped"),
    Case(strategies.RandomGroups(2, seed=0), "random_groups"),
    Case(strategies.RandomGroups(2, "epoch", seed=1), "random_groups_epoch"),
    Case(strategies.RandomGroups(2, "step", seed=2), "random_groups_step"),
    Case("round_robin"),
    Case(strategies.Sampled(seed=3), "sampled"),
    Case("multi_adaptive"),
]

# Those whose tasks have updates of their own: rules of sub-steps hold for them.
SUB_STEPPED = [case for case in STRATEGIES if case.id != "joint"]

# What each folder exports; the other folders are private.
PUBLIC = {
    "aggregators": [
        "Aggregator",
        "AlignedMTL",
        "CAGrad",
        "ConFIG",
        "DBMTL",
        "DualProj",
        "EMA",
        "FairGrad",
        "GradDrop",
        "GradVac",
        "GramianAggregator",
        "IMTLG",
        "MGDA",
        "Mean",
        "MoCo",
        "NashMTL",
        "Normalized",
        "PCGrad",
        "Sum",
        "TaskTensioner",
        "UPGrad",
        "get",
        "ids",
    ],
    "callbacks": ["BackupAndResume"],
    "datasets": ["multi_digits"],
    "losses": ["MaskedLoss"],
    "metrics": [],
    "models": ["FunctionalMultiTaskModel", "MultiTaskModel"],
    "optimizers": ["PerTaskOptimizer"],
    "strategies": [
        "Alternating",
        "Grouped",
        "Joint",
        "MultiAdaptive",
        "RandomGroups",
        "RoundRobin",
        "Sampled",
        "UpdateStrategy",
        "get",
        "ids",
    ],
}

# Base classes and functions beside the objects that have an id.
WITHOUT_ID = {"Aggregator", "EMA", "GramianAggregator", "UpdateStrategy"}
WITHOUT_ID |= {"FunctionalMultiTaskModel", "get", "ids"}
