from mtlkeras.backend.tensorflow.task_datasets import TaskDatasets
from mtlkeras.backend.tensorflow.trainer import (
    TensorFlowMultiTaskTrainer as MultiTaskTrainer,
)

__all__ = ["MultiTaskTrainer", "TaskDatasets"]
