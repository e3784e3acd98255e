from mtlkeras.aggregators.aggregator import Aggregator, GramianAggregator
from mtlkeras.aggregators.mean import Mean
from mtlkeras.aggregators.sum import Sum
from mtlkeras.registry import Registry

_registry = Registry(Aggregator, "aggregator")
_registry.add(Mean, Sum)


def get(identifier):
    """The aggregator for an id, a config or an object; `None` is none."""
    return None if identifier is None else _registry.get(identifier)


def ids():
    """The registered aggregator ids."""
    return _registry.ids()


__all__ = [
    "Aggregator",
    "GramianAggregator",
    "Mean",
    "Sum",
    "get",
    "ids",
]
