import dataclasses
import math
import warnings

import keras

from mtlkeras import aggregators, balancers, strategies
from mtlkeras.models.update_plan import UpdatePlan
from mtlkeras.optimizers.given_optimizer import fits
from mtlkeras.optimizers.per_task_optimizer import (
    PerTaskOptimizer,
    innermost,
    is_adaptive,
)


@dataclasses.dataclass(frozen=True)
class UpdateInForce:
    """How a model's tasks are trained: what one call of `fit` may change.

    It is replaced as a whole and never changed, so that a refused `fit` can
    put the one before back.

    Attributes:
        strategy: An `UpdateStrategy`.
        aggregator: An `Aggregator` or `None`.
        balancer: A `LossBalancer` or `None`.
        optimizer: The optimizer that goes with them.
        plan: The `UpdatePlan`, or `None` until the model's outputs are known.
        group_aggregators: The aggregator of every group, if there is one.
    """

    strategy: strategies.UpdateStrategy
    aggregator: object = None
    balancer: object = None
    optimizer: object = None
    plan: UpdatePlan | None = None
    group_aggregators: tuple = ()

    @classmethod
    def resolve(cls, strategy, aggregator, balancer):
        """From what the user gave: ids become objects here."""
        return cls(
            strategies.get(strategy),
            aggregators.get(aggregator),
            balancers.get(balancer),
        )

    def without_state(self):
        """The same update with nothing that a strategy has measured."""
        return dataclasses.replace(self, strategy=self.strategy.without_state())

    def check(self, task_names):
        """Whether strategy, aggregator, balancer and tasks go together.

        Raises:
            ValueError: If they do not.
        """
        self.strategy.bind(task_names)
        if self.balancer is not None:
            self.balancer.bind(task_names)
        if self.aggregator is None:
            return
        groups = self.strategy.task_groups(task_names)
        if not self.strategy.groups_are_fixed:
            raise ValueError(
                "An aggregator joins the gradients of a fixed group of tasks, "
                "as 'joint', 'grouped' and 'random_groups' with "
                "resample='never' have them. Received: "
                f"strategy={self.strategy!r} with "
                f"aggregator={type(self.aggregator).__name__}. Use one of "
                "those strategies, or `aggregator=None`."
            )
        if len(task_names) > 1 and max(map(len, groups)) == 1:
            raise ValueError(
                "An aggregator joins the gradients of several tasks, while "
                f"every group of strategy={self.strategy!r} has one task. "
                f"Received: aggregator={type(self.aggregator).__name__}. Use "
                "strategy='joint', 'grouped' or 'random_groups', or pass "
                "`aggregator=None`."
            )

    def same_as(self, other):
        return (
            self.strategy == other.strategy
            and same_rule(self.aggregator, other.aggregator)
            and same_rule(self.balancer, other.balancer)
        )

    def with_rules_of(self, other):
        """The same update with another's rules, where those are equal."""
        kept = {
            name: getattr(other, name)
            for name in ("aggregator", "balancer")
            if same_rule(getattr(self, name), getattr(other, name))
        }
        return dataclasses.replace(self, **kept)

    def with_structure(self, structure):
        """The same update, laid over a model whose outputs are known."""
        self.check(structure.tasks.names)
        plan = UpdatePlan(self.strategy, structure)
        if structure.depends_on_task:
            self._check_runs_by_task(plan)
        return dataclasses.replace(
            self, plan=plan, group_aggregators=self._aggregators_for(plan)
        )

    def _check_runs_by_task(self, plan):
        """Refuses steps that run the trunk once for several tasks."""
        if plan.structure.graph is None:
            raise ValueError(
                "Layers that do something else for each task, such as "
                "`RoamingMask`, need a model made of inputs and outputs, which "
                "can run its trunk for one task. Received: a subclassed model."
            )
        strategy, rule, balancer = self.strategy, self.aggregator, self.balancer
        chosen = strategy.one_group_per_step or strategy.shuffle
        largest = max(map(len, plan.groups))
        refused = None
        if strategy.regroups != "never" or (chosen and largest > 1):
            refused = f"strategy={strategy!r}"
        elif rule is not None and rule.gradients_at == "features":
            refused = f"aggregator={type(rule).__name__} at features"
        elif balancer is not None and balancer.requires_gradient_norms:
            if balancer.norms_at == "features":
                refused = f"balancer={type(balancer).__name__} at features"
        if refused is not None:
            raise ValueError(
                "With layers that do something else for each task, such as "
                "`RoamingMask`, the trunk runs once per task, so tasks have no "
                f"features in common. Received: {refused}. Use 'joint', "
                "'alternating', 'grouped', 'multi_adaptive' or one task per "
                "step, with gradients or norms at the parameters."
            )

    def _aggregators_for(self, plan):
        """The aggregator of every group, with state for its size."""
        rule = self.aggregator
        if rule is None:
            return ()
        at_features = rule.gradients_at == "features"
        opaque = plan.structure.graph is None
        if at_features and opaque and rule.feature_layers is None:
            raise ValueError(
                "`gradients_at='features'` finds where the shared part ends "
                "from the graph of a functional model. Received a subclassed "
                "model, whose graph is not known. Pass the names of the last "
                "layers that the tasks share: "
                f"`{type(rule).__name__}(gradients_at='features', "
                "feature_layers=['name'])`."
            )
        if at_features and rule.feature_layers is None:
            check_boundaries(plan)
        names = plan.structure.tasks.names
        indices = tuple(
            tuple(names.index(name) for name in group) for group in plan.groups
        )
        found = tuple(rule.for_groups(indices))
        for index, aggregator in enumerate(found):
            sizes = [math.prod(v.shape) for v in plan.shared_in_group(index)]
            aggregator.ensure_built(len(indices[index]), sum(sizes))
        return found

    def with_optimizer(self, user_optimizer, before=None):
        """The same update with the optimizer that it needs.

        Args:
            user_optimizer: What the user gave to `compile`.
            before: The optimizer that has trained the model so far, if any.
        """
        # Joint training is Keras's own, on the user's own object; but after
        # other training that object would have no batch counter or a count
        # that does not fit emptied slots. A container of one slot has both.
        fresh = (
            before is None
            or not before.built
            or not keras.ops.convert_to_numpy(innermost(before)._iterations)
        )
        self.check_accumulation(user_optimizer)
        if self.strategy.updates_jointly and fresh:
            optimizer = user_optimizer
        else:
            optimizer = PerTaskOptimizer(user_optimizer)
        return dataclasses.replace(self, optimizer=optimizer)

    def check_accumulation(self, optimizer):
        """Refuses one optimizer state that accumulates for many sub-steps."""
        steps = innermost(optimizer).gradient_accumulation_steps
        joint = self.strategy.updates_jointly
        if steps and not joint and not self.strategy.task_slots:
            raise ValueError(
                "An optimizer that accumulates gradients needs slots per task: "
                "one state in common would mix up and lose the sub-steps' "
                "gradients. Received: gradient_accumulation_steps="
                f"{steps} with strategy={self.strategy!r}. Use "
                "`task_slots=True`, or larger batches."
            )

    def with_given(self, container, structure, model):
        """The same update with a container given by the user, if it fits."""
        slots = None
        if structure is not None and not self.strategy.updates_jointly:
            slots = self.with_structure(structure).plan.slots
        if not fits(container, slots, model.trainable_variables):
            return self
        return dataclasses.replace(self, optimizer=container)

    def build_optimizer(self, model):
        """Builds the optimizer, once variables and plan are known."""
        optimizer, plan = self.optimizer, self.plan
        if plan is None or not model.built:
            return
        if not isinstance(optimizer, PerTaskOptimizer):
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
            model._heed_every_replica([optimizer])
            return
        if optimizer.slots is None and not self.strategy.updates_jointly:
            optimizer.configure(
                plan.slots,
                plan.slot_names,
                plan.factors,
                self.strategy.shared_scale,
            )
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        model._select_updates(optimizer)
        model._heed_every_replica(optimizer.optimizers)
        if optimizer.fused and len(optimizer.slots) > 1:
            model._fuse_updates(optimizer)

    def carry_over(self, old):
        """Goes on with learning rate and batch counter of another optimizer."""
        if isinstance(self.optimizer, PerTaskOptimizer):
            self.optimizer.carry_over(old)
        elif not callable(innermost(self.optimizer)._learning_rate):
            self.optimizer.learning_rate = float(
                keras.ops.convert_to_numpy(old.learning_rate)
            )

    def warn_if_weights_cancel(self, tasks):
        """Loss weights do next to nothing to slots of adaptive optimizers."""
        weighted = any(w not in (None, 1.0) for w in tasks.weights.values())
        causes = ["`loss_weights`"] * weighted
        if self.balancer is not None:
            causes.append(f"the weights of {type(self.balancer).__name__}")
        if not (causes and self.strategy.task_slots):
            return False
        template = self.optimizer.template()
        if not is_adaptive(template):
            return False
        warnings.warn(
            "With optimizer slots per task, an adaptive optimizer "
            f"({type(innermost(template)).__name__}) cancels the scale of each "
            f"task's loss, so {' and '.join(causes)} hardly change the "
            "training. To "
            "prioritise a task give the strategy "
            "`task_learning_rates={'task': factor}`, if it takes them.",
            stacklevel=3,
        )
        return True


def same_rule(first, second):
    """Whether two aggregators or balancers, or `None`, are equal."""
    if first is None or second is None:
        return first is second
    return first is second or first.same_rule(second)


def check_boundaries(plan):
    """Refuses features where tasks of a group share no tensor but inputs."""
    for group in plan.groups:
        if len(group) == 1 or plan.structure.has_boundary(group):
            continue
        raise ValueError(
            "`gradients_at='features'` needs tensors that the shared part of "
            f"the network computes for several tasks. The tasks {list(group)} "
            "have none: they are computed from the inputs, or from different "
            "calls of shared layers. Use gradients_at='parameters'."
        )
