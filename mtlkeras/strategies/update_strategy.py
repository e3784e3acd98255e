import random

import keras


class UpdateStrategy:
    """Which tasks update together, and when: the base class of strategies.

    A strategy is data, not a piece of training loop. It says into which groups
    the tasks fall (`task_groups`) and declares, as attributes, what kind of
    step it needs; the trainer reads them and never asks for a name. Write your
    own by subclassing it and implementing `task_groups`.

    What a subclass declares is listed here with its default in brackets.

    Attributes that a subclass sets:
        updates_jointly: One ordinary Keras step on the weighted sum of the
            losses, with the user's own optimizer (`False`).
        one_group_per_step: A step trains only the group `select_group(step)`
            (`False`).
        at_same_weights: All gradients of a step are taken before the first
            update instead of one after the other (`False`).
        regroups: `"never"`, `"epoch"` or `"step"`: when `assign_groups` draws
            a new partition; `"measured"`: it is read from the strategy's
            `state`, which the steps change (`"never"`).
        shuffle: Whether the order of the groups is drawn for each batch
            (`False`).
        shared_scale: Factor on the updates of shared variables (`1.0`).
        state: A layer, which is saved with the model, or `None` (`None`).

    Args:
        task_slots: Boolean. Whether every group keeps optimizer state of its
            own. `False` is the ablation with one state in common.
        task_learning_rates: Dict `{task: factor}` or `None`. Multiplies the
            task's update; tasks not named have factor 1.
    """

    updates_jointly = False
    one_group_per_step = False
    at_same_weights = False
    regroups = "never"
    shuffle = False
    shared_scale = 1.0
    task_slots = True
    task_learning_rates = None
    state = None

    def __init__(self, task_slots=True, task_learning_rates=None):
        self.task_slots = check_flag("task_slots", task_slots)
        self.task_learning_rates = check_task_learning_rates(
            task_learning_rates
        )
        self._task_names = None
        self._draw = 0

    def task_groups(self, task_names):
        """The partition of the tasks, in the order in which they update.

        Args:
            task_names: Tuple of strings, in the model's order.

        Returns:
            A tuple of tuples of task names that holds every task once.
        """
        raise NotImplementedError

    def select_group(self, step):
        """Index of the group that batch number `step` trains (scalar)."""
        raise NotImplementedError

    def select_labelled_group(self, step, labelled):
        """As `select_group`, for a batch that may lack labels.

        By default it pays no heed to labels: a batch does nothing if it has
        none for the selected group.

        Args:
            step: Number of the batch.
            labelled: Boolean tensor `[groups]`, which groups have labels in
                the batch.
        """
        return self.select_group(step)

    def order_groups(self, step):
        """Order in which batch number `step` visits the groups, `[groups]`."""
        raise NotImplementedError

    def assign_groups(self, draw):
        """Group index of every task in draw number `draw`, `[num_tasks]`."""
        raise NotImplementedError

    def finish_batch(self, optimizer):
        """What happens on the host after a batch or, with
        `steps_per_execution`, after several; nothing here.

        Args:
            optimizer: The model's optimizer.
        """

    def finish_epoch(self, optimizer):
        """What happens on the host after an epoch of `fit`; nothing here.

        Args:
            optimizer: The model's optimizer.
        """

    def bind(self, task_names):
        """Checks the strategy against the model's tasks and remembers them.

        Raises:
            ValueError: If groups, probabilities or learning rates do not fit
                the tasks.
        """
        task_names = tuple(task_names)
        groups = self.task_groups(task_names)
        self.slot_learning_rates(task_names, groups)
        self._task_names = task_names

    def without_state(self):
        """This strategy, or an equal new one if it is in force somewhere."""
        if self.state is None:
            return self
        return type(self).from_config(self.get_config())

    @property
    def groups(self):
        """The partition in force, a tuple of tuples of task names."""
        if self._task_names is None:
            raise ValueError(
                f"The groups of {self!r} are known once it is in force in a "
                "model. Pass it to `model.compile(strategy=...)` or "
                "`model.fit(strategy=...)` first."
            )
        if self.regroups == "never":
            return self.task_groups(self._task_names)
        assigned = keras.ops.convert_to_numpy(self.assign_groups(self._draw))
        return tuple(
            tuple(
                name
                for name, index in zip(self._task_names, assigned, strict=True)
                if index == group
            )
            for group in range(int(assigned.max()) + 1)
        )

    def remember_draw(self, optimizer):
        """Looks up which draw is in force, for `groups`."""
        if self.regroups == "epoch":
            self._draw = as_integer(optimizer.draw)
        elif self.regroups == "step":
            # The partition of the batch that was trained last.
            self._draw = max(as_integer(optimizer.iterations) - 1, 0)

    @property
    def groups_are_fixed(self):
        """Whether every batch trains the same groups, in the same order.

        An aggregator can join the gradients of such groups.
        """
        return not (
            self.one_group_per_step
            or self.at_same_weights
            or self.shuffle
            or self.regroups != "never"
        )

    def slot_learning_rates(self, task_names, groups):
        """Factor of each group's update, from `task_learning_rates`."""
        given = self.task_learning_rates or {}
        unknown = [name for name in given if name not in task_names]
        if unknown:
            raise ValueError(
                "Argument `task_learning_rates` must name tasks of the model, "
                f"which has the tasks {list(task_names)}. Received unknown "
                f"names: {unknown}"
            )
        # With one state in common, or with changing groups, every task shares.
        shares = (
            groups
            if self.task_slots and self.regroups == "never"
            else (task_names,)
        )
        for group in shares:
            factors = {name: float(given.get(name, 1.0)) for name in group}
            if len(set(factors.values())) > 1:
                raise ValueError(
                    "Tasks that share optimizer state must have equal values "
                    f"in `task_learning_rates`. The tasks {list(group)} share "
                    f"a slot. Received: {factors}"
                )
        return tuple(float(given.get(group[0], 1.0)) for group in groups)

    def get_config(self):
        """Constructor arguments, for saving and for comparing."""
        return {
            "task_slots": self.task_slots,
            "task_learning_rates": self.task_learning_rates,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __eq__(self, other):
        return (
            type(self) is type(other)
            and self.get_config() == other.get_config()
        )

    def __hash__(self):
        return hash((type(self), repr(sorted(self.get_config().items()))))

    def __repr__(self):
        arguments = ", ".join(
            f"{key}={value!r}" for key, value in self.get_config().items()
        )
        return f"{type(self).__name__}({arguments})"


def as_integer(variable):
    # A variable of several replicas is no number for Python.
    return int(keras.ops.convert_to_numpy(variable))


def check_flag(name, value):
    if not isinstance(value, bool):
        raise ValueError(
            f"Argument `{name}` must be a boolean. Received: {name}={value!r}"
        )
    return value


def check_seed(seed):
    if seed is None:
        # From the generator that `keras.utils.set_random_seed` seeds.
        return random.randint(0, 2**31 - 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(
            "Argument `seed` must be a non-negative integer or `None`. "
            f"Received: seed={seed!r}"
        )
    return seed


def check_task_learning_rates(task_learning_rates):
    if task_learning_rates is None:
        return None
    if not isinstance(task_learning_rates, dict) or not all(
        isinstance(factor, (int, float)) and 0 < factor < float("inf")
        for factor in task_learning_rates.values()
    ):
        raise ValueError(
            "Argument `task_learning_rates` must be a dict from task names to "
            "positive factors, such as `{'depth': 0.5}`. Received: "
            f"task_learning_rates={task_learning_rates!r}"
        )
    return {name: float(f) for name, f in task_learning_rates.items()}
