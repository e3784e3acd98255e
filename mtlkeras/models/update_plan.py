import dataclasses


@dataclasses.dataclass
class UpdatePlan:
    """What the trainer needs to know of a model under a strategy.

    Attributes:
        groups: Tuple of tuples of task names: the groups, or, where groups are
            drawn anew, one tuple of all tasks for each position.
        variables: List of the model's trainable variables.
        reach: Dict from task to the set of indices of the variables that its
            loss reaches.
        slots: Tuple of tuples of variable indices, one per optimizer clone.
        slot_names: Tuple of strings.
        factors: Tuple of floats on the clones' updates.
        group_slots: Tuple, the clone of each group.
        head_slots: Dict from task to the clone of its own variables, where
            groups are drawn anew; else empty.
        layer_groups: List of `(layer, tuple of group indices)`: the groups
            whose forward pass uses the layer.
        layer_tasks: List of `(layer, tuple of task names)`: the tasks that do.
    """

    groups: tuple
    variables: list
    reach: dict
    slots: tuple
    slot_names: tuple
    factors: tuple
    group_slots: tuple
    head_slots: dict
    layer_groups: list
    layer_tasks: list

    def __post_init__(self):
        self.variable_groups = {
            id(v): tuple(
                k
                for k, group in enumerate(self.groups)
                if any(i in self.reach[name] for name in group)
            )
            for i, v in enumerate(self.variables)
        }

    def group_variables(self, index):
        """Trainable variables that the group's loss reaches, in order."""
        return [
            v for v in self.variables if index in self.variable_groups[id(v)]
        ]

    def shared_variables(self):
        return [
            v
            for i, v in enumerate(self.variables)
            if sum(i in reached for reached in self.reach.values()) > 1
        ]

    def task_variables(self, name):
        """Trainable variables that only this task reaches."""
        return [
            v
            for i, v in enumerate(self.variables)
            if i in self.reach[name]
            and sum(i in reached for reached in self.reach.values()) == 1
        ]


def make_plan(strategy, task_names, variables, reach, layer_tasks):
    """The plan of a strategy for a model.

    Args:
        strategy: An `UpdateStrategy` that is bound to the tasks.
        task_names: Tuple of strings.
        variables: List of trainable variables.
        reach: Dict from task to the set of indices of variables it reaches.
        layer_tasks: List of `(layer, set of task names)`.
    """
    groups = strategy.task_groups(task_names)
    factors = strategy.slot_learning_rates(task_names, groups)
    reached = [
        i
        for i in range(len(variables))
        if any(i in reach[name] for name in task_names)
    ]
    names = tuple("_".join(group) for group in groups)
    if len(groups) > 1 and max(len(group) for group in groups) > 1:
        names = tuple(f"group_{k}" for k in range(len(groups)))
    head_slots = {}
    if not strategy.task_slots and strategy.regroups == "never":
        slots, names = (tuple(reached),), ("shared",)
        factors, group_slots = factors[:1], (0,) * len(groups)
    elif strategy.regroups != "never":
        own = {
            name: tuple(
                i
                for i in sorted(reach[name])
                if sum(i in other for other in reach.values()) == 1
            )
            for name in task_names
        }
        shared = tuple(
            i
            for i in reached
            if sum(i in other for other in reach.values()) > 1
        )
        positions = len(groups) if strategy.task_slots else 1
        with_head = [name for name in task_names if own[name]]
        slots = (shared,) * positions + tuple(own[n] for n in with_head)
        names = tuple(f"group_{k}" for k in range(positions))
        names += tuple(with_head)
        group_slots = tuple(min(k, positions - 1) for k in range(len(groups)))
        head_slots = {name: positions + i for i, name in enumerate(with_head)}
        factors = (factors[0],) * len(slots)
        groups = (task_names,) * len(groups)
    else:
        slots = tuple(
            tuple(i for i in reached if any(i in reach[name] for name in group))
            for group in groups
        )
        group_slots = tuple(range(len(groups)))
    layer_groups = [
        (
            layer,
            tuple(
                k
                for k, group in enumerate(groups)
                if any(name in tasks for name in group)
            ),
        )
        for layer, tasks in layer_tasks
    ]
    return UpdatePlan(
        groups=groups,
        variables=variables,
        reach=reach,
        slots=slots,
        slot_names=names,
        factors=factors,
        group_slots=group_slots,
        head_slots=head_slots,
        layer_groups=layer_groups,
        layer_tasks=[(layer, tuple(tasks)) for layer, tasks in layer_tasks],
    )
