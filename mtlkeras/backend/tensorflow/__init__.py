from mtlkeras.backend.tensorflow.distribution import writes_files
from mtlkeras.backend.tensorflow.task_datasets import TaskDatasets
from mtlkeras.backend.tensorflow.trainer import (
    TensorFlowMultiTaskTrainer as MultiTaskTrainer,
)

__all__ = ["MultiTaskTrainer", "TaskDatasets", "writes_files"]
