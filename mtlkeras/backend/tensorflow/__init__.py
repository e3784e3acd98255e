from mtlkeras.backend.tensorflow.distribution import writes_files
from mtlkeras.backend.tensorflow.scalar_writer import ScalarWriter
from mtlkeras.backend.tensorflow.task_datasets import TaskDatasets
from mtlkeras.backend.tensorflow.trainer import (
    TensorFlowMultiTaskTrainer as MultiTaskTrainer,
)

__all__ = [
    "MultiTaskTrainer",
    "ScalarWriter",
    "TaskDatasets",
    "writes_files",
]
