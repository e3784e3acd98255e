from mtlkeras.layers.channel_gate import ChannelGate
from mtlkeras.layers.conversion_product import ConversionProduct
from mtlkeras.layers.cross_stitch import CrossStitch
from mtlkeras.layers.customized_gate_control import CustomizedGateControl
from mtlkeras.layers.gradient_reversal import GradientReversal
from mtlkeras.layers.mixture_of_experts import MixtureOfExperts
from mtlkeras.layers.roaming_mask import RoamingMask
from mtlkeras.layers.task_attention import TaskAttention
from mtlkeras.layers.task_batch_normalization import TaskBatchNormalization

__all__ = [
    "ChannelGate",
    "ConversionProduct",
    "CrossStitch",
    "CustomizedGateControl",
    "GradientReversal",
    "MixtureOfExperts",
    "RoamingMask",
    "TaskAttention",
    "TaskBatchNormalization",
]
