from mtlkeras.balancers.geometric_mean import GeometricMean
from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.task_weights import TaskWeights
from mtlkeras.balancers.uncertainty_weighting import UncertaintyWeighting
from mtlkeras.registry import Registry

_registry = Registry(LossBalancer, "balancer")
_registry.add(GeometricMean, TaskWeights, UncertaintyWeighting)


def get(identifier):
    """The balancer for an id, a config or an object; `None` is none."""
    return None if identifier is None else _registry.get(identifier)


def ids():
    """The registered balancer ids."""
    return _registry.ids()


__all__ = [
    "GeometricMean",
    "LossBalancer",
    "TaskWeights",
    "UncertaintyWeighting",
    "get",
    "ids",
]
