import weakref

from mtlkeras import aggregators as aggregators_folder
from mtlkeras import balancers as balancers_folder
from mtlkeras import strategies as strategies_folder
from mtlkeras.tuner.candidate import declare, read_candidates
from mtlkeras.tuner.search_spaces import search_spaces as known_spaces


class UpdateSpace:
    """The hyperparameters of how tasks are trained together, and their use.

    Args:
        strategies, aggregators, balancers, learning_rate, task_learning_rates,
        search_spaces, seed: As in `MultiTaskHyperModel`.
    """

    def __init__(
        self,
        strategies,
        aggregators,
        balancers,
        learning_rate,
        task_learning_rates,
        search_spaces,
        seed,
    ):
        self.strategies = read_candidates(
            "strategies", strategies, strategies_folder
        )
        self.aggregators = read_candidates(
            "aggregators", aggregators, aggregators_folder
        )
        self.balancers = read_candidates(
            "balancers", balancers, balancers_folder
        )
        self.learning_rate = logarithmic(learning_rate)
        self.task_learning_rates = task_learning_rates
        self.search_spaces = dict(search_spaces or {})
        self.seed = seed
        self._applied = weakref.WeakKeyDictionary()
        self._check_search_spaces()

    def apply(self, hp, model):
        """Asks for the hyperparameters and puts what they say in force.

        Args:
            hp: A `keras_tuner.HyperParameters`.
            model: A compiled `MultiTaskModel`.
        """
        tasks = task_names_of(model)
        strategy = self._ask_strategy(hp, tasks)
        aggregator = self._ask_aggregator(hp, tasks)
        balancer = self._ask(hp, "balancer", self.balancers, tasks)
        if self.learning_rate is not None:
            current = float(model.optimizer.learning_rate)
            rate = declare(hp, "learning_rate", self.learning_rate, current)
            set_learning_rate(model.optimizer, rate)
        # As `fit(strategy=...)` does, but before weights are loaded, with
        # which the state of optimizer and methods comes.
        model._change(model._resolve(strategy, aggregator, balancer))
        if model.built and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._applied[model] = model.update_strategy

    def is_applied(self, model):
        """Whether a model has in force what `apply` gave it."""
        return self._applied.get(model) is model.update_strategy

    # -- the three choices ----------------------------------------------------

    def _ask_strategy(self, hp, tasks):
        name = choose(hp, "strategy", self.strategies)
        arguments = self._ask_arguments(
            hp, "strategy", self.strategies, name, tasks
        )
        if self.task_learning_rates is not None:
            alone = [
                name
                for name, candidate in self.strategies.items()
                if candidate.takes("task_learning_rates")
                and keeps_slots_per_task(self._make(candidate), tasks)
            ]
            space = self._factor_space(tasks, alone)
            with hp.conditional_scope("strategy", alone):
                factors = declare(hp, "task_learning_rates", space)
            if name in alone:
                arguments["task_learning_rates"] = factors
        return self._make(self.strategies[name], arguments)

    def _ask_aggregator(self, hp, tasks):
        joining = [
            name
            for name, candidate in self.strategies.items()
            if updates_together(self._make(candidate), tasks)
        ]
        if joining:
            with hp.conditional_scope("strategy", joining):
                return self._ask(hp, "aggregator", self.aggregators, tasks)
        if any(self.aggregators.values()):
            raise ValueError(
                "An aggregator joins the gradients of several tasks, which no "
                "strategy here updates together; 'joint' would. Received: "
                f"strategies={list(self.strategies)}, "
                f"aggregators={list(self.aggregators)}"
            )
        return None

    def _ask(self, hp, argument, candidates, tasks):
        """A new object of the chosen candidate, or `None`."""
        if not any(candidates.values()):
            return None
        name = choose(hp, argument, candidates)
        arguments = self._ask_arguments(hp, argument, candidates, name, tasks)
        # No name: the scope is not active.
        if name is None or candidates[name] is None:
            return None
        return self._make(candidates[name], arguments)

    def _ask_arguments(self, hp, argument, candidates, chosen, tasks):
        """Asks for those of all candidates; returns those of the chosen."""
        arguments = {}
        for name, candidate in candidates.items():
            space = self._space(candidate, tasks)
            if not space:
                continue
            with hp.conditional_scope(argument, [name]):
                found = {
                    key: declare(
                        hp, f"{name}/{key}", inner, candidate.default(key)
                    )
                    for key, inner in space.items()
                }
            if name == chosen:
                arguments = found
        return arguments

    def _make(self, candidate, arguments=None):
        draws = candidate.takes("seed") and candidate.default("seed") is None
        if draws and not candidate.is_fixed:
            # The same groups when the best model is built again.
            arguments = {"seed": self.seed, **(arguments or {})}
        return candidate.make(**(arguments or {}))

    # -- spaces ---------------------------------------------------------------

    def _space(self, candidate, tasks):
        """Dict from argument to its space."""
        if candidate is None or candidate.is_fixed:
            return {}
        for key in (candidate.cls, candidate.id):
            if key in self.search_spaces:
                return self.search_spaces[key]
        return known_spaces(tasks).get(candidate.cls, {})

    def _factor_space(self, tasks, alone):
        """Dict from task to the space of its factor."""
        given = self.task_learning_rates
        if not isinstance(given, dict):
            given = dict.fromkeys(tasks, given)
        unknown = [task for task in given if task not in tasks]
        if unknown or not given:
            raise ValueError(
                "Argument `task_learning_rates` must name tasks of the model, "
                f"which has {list(tasks)}. Received: {list(given)}"
            )
        if not alone:
            raise ValueError(
                "`task_learning_rates` needs a strategy in which every task "
                "has optimizer slots of its own, such as 'alternating'. "
                f"Received: strategies={list(self.strategies)}"
            )
        return {task: logarithmic(space) for task, space in given.items()}

    def _check_search_spaces(self):
        tuned = {
            key
            for folder in (self.strategies, self.aggregators, self.balancers)
            for candidate in folder.values()
            if candidate is not None and not candidate.is_fixed
            for key in (candidate.cls, candidate.id)
        }
        for key, space in self.search_spaces.items():
            if key not in tuned or not isinstance(space, dict):
                raise ValueError(
                    "Argument `search_spaces` must be a dict from ids or "
                    "classes that `strategies`, `aggregators` or `balancers` "
                    "hold to dicts from argument to space. Received: "
                    f"search_spaces={self.search_spaces!r}"
                )


def choose(hp, argument, candidates):
    """The name of a candidate; `None` in a scope that is not active."""
    name = hp.Choice(argument, list(candidates))
    if name is not None and name not in candidates:
        raise ValueError(
            f"The hyperparameter '{argument}' must be one of "
            f"{list(candidates)}. Received: {name!r}. If your `build` has a "
            "hyperparameter of this name, call it otherwise."
        )
    return name


def updates_together(strategy, tasks):
    """Whether an aggregator can join gradients under a strategy."""
    return (
        strategy.groups_are_fixed
        and max(map(len, strategy.task_groups(tasks))) > 1
    )


def keeps_slots_per_task(strategy, tasks):
    """Whether every task has optimizer slots, and no factors are given."""
    return (
        strategy.task_slots
        and strategy.regroups == "never"
        and max(map(len, strategy.task_groups(tasks))) == 1
        and strategy.task_learning_rates is None
    )


def logarithmic(space):
    """A search space; `(min, max)` is sampled logarithmically."""
    if isinstance(space, tuple) and len(space) == 2:
        return (*map(float, space), "log")
    return space


def set_learning_rate(optimizer, rate):
    try:
        optimizer.learning_rate = rate
    except TypeError as error:
        raise ValueError(
            "`learning_rate` sets a number as the optimizer's learning rate. "
            "Received: an optimizer whose learning rate is a schedule. Leave "
            "out `learning_rate`, and make the schedule from hyperparameters "
            "in `build`."
        ) from error


def task_names_of(model):
    """Names of the tasks, of a subclassed model from its losses."""
    try:
        return tuple(model.task_names)
    except ValueError:
        losses = model._multi_task.tasks.loss
        return tuple(name for name, loss in losses.items() if loss is not None)
