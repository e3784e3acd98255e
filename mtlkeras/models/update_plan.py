class UpdatePlan:
    """A strategy laid over a model: what the trainer and the optimizer need.

    Args:
        strategy: An `UpdateStrategy`.
        structure: The model's `TaskStructure`.

    Attributes:
        groups: Tuple of tuples of task names: the groups in order, or, where
            groups are drawn anew, one tuple of all tasks for each position.
        slots: Tuple of tuples of variable indices, one per optimizer clone.
        slot_names: Tuple of strings.
        factors: Tuple of floats on the clones' updates.
        group_slots: Tuple, the clone of each group.
        head_slots: Dict from task to the clone of its own variables, where
            groups are drawn anew; else empty.
        layer_groups: List of `(layer, tuple of group indices)`: the groups
            whose forward pass uses the layer.
        variable_groups: Dict from `id(variable)` to the tuple of indices of
            the groups whose loss reaches it.
    """

    def __init__(self, strategy, structure):
        self.structure = structure
        names = structure.tasks.names
        groups = strategy.task_groups(names)
        self.factors = strategy.slot_learning_rates(names, groups)
        self.head_slots = {}
        if strategy.regroups != "never":
            self._lay_out_positions(strategy, groups)
            groups = (names,) * len(groups)
        elif strategy.task_slots:
            self._lay_out_groups(groups)
        else:
            self._lay_out_one_slot(groups)
        self.groups = groups
        self.layer_groups = [
            (layer, self._groups_with(lambda name, tasks=tasks: name in tasks))
            for layer, tasks in structure.layer_tasks
        ]
        self.variable_tasks = {
            id(v): structure.users(i) for i, v in enumerate(structure.variables)
        }
        self.variable_groups = {
            id(v): self._groups_with(
                lambda name, i=i: i in structure.reach[name]
            )
            for i, v in enumerate(structure.variables)
        }

    def _lay_out_groups(self, groups):
        """A clone per group, on all that the group reaches."""
        self.slots = tuple(self._reached_by(group) for group in groups)
        self.group_slots = tuple(range(len(groups)))
        self.slot_names = tuple("_".join(group) for group in groups)
        if len(groups) > 1 and max(len(group) for group in groups) > 1:
            self.slot_names = tuple(f"group_{k}" for k in self.group_slots)

    def _lay_out_one_slot(self, groups):
        """One clone in common, on all that any task reaches."""
        self.slots = (self._reached_by(self.structure.tasks.names),)
        self.group_slots = (0,) * len(groups)
        self.slot_names = ("shared",)
        self.factors = self.factors[:1]

    def _lay_out_positions(self, strategy, groups):
        """Clones for the positions of groups, and one for each head."""
        count = len(groups) if strategy.task_slots else 1
        structure = self.structure
        shared = structure.indices(lambda users: len(users) > 1)
        self.slots = (shared,) * count
        self.slot_names = tuple(f"group_{k}" for k in range(count))
        self.group_slots = tuple(min(k, count - 1) for k in range(len(groups)))
        for name in structure.tasks.names:
            own = structure.indices(lambda users, n=name: users == (n,))
            if own:
                self.head_slots[name] = len(self.slots)
                self.slots += (own,)
                self.slot_names += (name,)
        self.factors = self.factors[:1] * len(self.slots)

    def _reached_by(self, group):
        return self.structure.indices(
            lambda users: any(name in users for name in group)
        )

    def _groups_with(self, condition):
        return tuple(
            k
            for k, group in enumerate(self.groups)
            if any(condition(name) for name in group)
        )

    def shared_in_group(self, index):
        """Those of them that the losses of at least two tasks reach."""
        group = self.groups[index]
        return [
            v
            for v in self.group_variables(index)
            if sum(name in self.variable_tasks[id(v)] for name in group) > 1
        ]

    def group_variables(self, index):
        """Trainable variables that the group's loss reaches, in order."""
        return [
            v
            for v in self.structure.variables
            if index in self.variable_groups[id(v)]
        ]
