from mtlkeras.aggregators.aggregator import Aggregator
from mtlkeras.aggregators.aligned_mtl import AlignedMTL
from mtlkeras.aggregators.cagrad import CAGrad
from mtlkeras.aggregators.con_fig import ConFIG
from mtlkeras.aggregators.db_mtl import DBMTL
from mtlkeras.aggregators.dual_proj import DualProj
from mtlkeras.aggregators.ema import EMA
from mtlkeras.aggregators.fairgrad import FairGrad
from mtlkeras.aggregators.graddrop import GradDrop
from mtlkeras.aggregators.gradvac import GradVac
from mtlkeras.aggregators.gramian_aggregator import GramianAggregator
from mtlkeras.aggregators.imtl_g import IMTLG
from mtlkeras.aggregators.mean import Mean
from mtlkeras.aggregators.mgda import MGDA
from mtlkeras.aggregators.moco import MoCo
from mtlkeras.aggregators.nash_mtl import NashMTL
from mtlkeras.aggregators.normalized import Normalized
from mtlkeras.aggregators.pcgrad import PCGrad
from mtlkeras.aggregators.sum import Sum
from mtlkeras.aggregators.task_tensioner import TaskTensioner
from mtlkeras.aggregators.upgrad import UPGrad
from mtlkeras.registry import Registry

_registry = Registry(Aggregator, "aggregator")
_registry.add(
    AlignedMTL,
    CAGrad,
    ConFIG,
    DBMTL,
    DualProj,
    FairGrad,
    GradDrop,
    GradVac,
    IMTLG,
    Mean,
    MGDA,
    MoCo,
    NashMTL,
    Normalized,
    PCGrad,
    Sum,
    TaskTensioner,
    UPGrad,
)


def get(identifier):
    """The aggregator for an id, a config or an object; `None` is none."""
    return None if identifier is None else _registry.get(identifier)


def ids():
    """The registered aggregator ids."""
    return _registry.ids()


__all__ = [
    "AlignedMTL",
    "Aggregator",
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
]
