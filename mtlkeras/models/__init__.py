from mtlkeras.models.functional_multi_task_model import (
    FunctionalMultiTaskModel,
)
from mtlkeras.models.multi_task_model import MultiTaskModel

__all__ = ["FunctionalMultiTaskModel", "MultiTaskModel"]
