from mtlkeras.registry import Registry
from mtlkeras.strategies.affinity_groups import AffinityGroups
from mtlkeras.strategies.alternating import Alternating
from mtlkeras.strategies.grouped import Grouped
from mtlkeras.strategies.joint import Joint
from mtlkeras.strategies.multi_adaptive import MultiAdaptive
from mtlkeras.strategies.random_groups import RandomGroups
from mtlkeras.strategies.round_robin import RoundRobin
from mtlkeras.strategies.sampled import Sampled
from mtlkeras.strategies.update_strategy import UpdateStrategy

_registry = Registry(UpdateStrategy, "strategy")
_registry.add(
    AffinityGroups,
    Alternating,
    Grouped,
    Joint,
    MultiAdaptive,
    RandomGroups,
    RoundRobin,
    Sampled,
)


def get(identifier):
    """The strategy for an id, a config or an object; `None` is `joint`."""
    if identifier is None:
        return Joint()
    if hasattr(identifier, "num_replicas_in_sync"):
        raise ValueError(
            "Argument `strategy` must be a string id or a "
            "`mtlkeras.strategies.UpdateStrategy`. Received a strategy of "
            f"`tf.distribute`: strategy={identifier}. To distribute training, "
            "build and compile the model inside `distribute_strategy.scope()` "
            "and leave it out here."
        )
    return _registry.get(identifier)


def ids():
    """The registered strategy ids."""
    return _registry.ids()


__all__ = [
    "AffinityGroups",
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
]
