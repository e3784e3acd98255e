from mtlkeras.balancers.famo import FAMO
from mtlkeras.balancers.geometric_mean import GeometricMean
from mtlkeras.balancers.gradnorm import GradNorm
from mtlkeras.balancers.imtl_l import IMTLL
from mtlkeras.balancers.learned_loss_balancer import LearnedLossBalancer
from mtlkeras.balancers.log_loss import LogLoss
from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.random_loss_weighting import RandomLossWeighting
from mtlkeras.balancers.slaw import SLAW
from mtlkeras.balancers.stch import STCH
from mtlkeras.balancers.task_weights import TaskWeights
from mtlkeras.balancers.uncertainty_weighting import UncertaintyWeighting
from mtlkeras.registry import Registry

_registry = Registry(LossBalancer, "balancer")
_registry.add(
    FAMO,
    GeometricMean,
    GradNorm,
    IMTLL,
    LogLoss,
    RandomLossWeighting,
    SLAW,
    STCH,
    TaskWeights,
    UncertaintyWeighting,
)


def get(identifier):
    """The balancer for an id, a config or an object; `None` is none."""
    return None if identifier is None else _registry.get(identifier)


def ids():
    """The registered balancer ids."""
    return _registry.ids()


__all__ = [
    "FAMO",
    "GeometricMean",
    "GradNorm",
    "IMTLL",
    "LearnedLossBalancer",
    "LogLoss",
    "LossBalancer",
    "RandomLossWeighting",
    "SLAW",
    "STCH",
    "TaskWeights",
    "UncertaintyWeighting",
    "get",
    "ids",
]
