from mtlkeras.layers.roaming_mask import RoamingMask
from mtlkeras.layers.task_batch_normalization import TaskBatchNormalization

__all__ = ["RoamingMask", "TaskBatchNormalization"]
