from mtlkeras.backend.tensorflow.trainer import (
    TensorFlowMultiTaskTrainer as MultiTaskTrainer,
)

__all__ = ["MultiTaskTrainer"]
