from mtlkeras.callbacks.backup_and_resume import BackupAndResume
from mtlkeras.callbacks.delta_m import DeltaM
from mtlkeras.callbacks.dynamic_weight_average import DynamicWeightAverage
from mtlkeras.callbacks.maximum_roaming import MaximumRoaming
from mtlkeras.callbacks.task_early_stopping import TaskEarlyStopping
from mtlkeras.callbacks.task_monitor import TaskMonitor
from mtlkeras.callbacks.task_weight_scheduler import TaskWeightScheduler

__all__ = [
    "BackupAndResume",
    "DeltaM",
    "DynamicWeightAverage",
    "MaximumRoaming",
    "TaskEarlyStopping",
    "TaskMonitor",
    "TaskWeightScheduler",
]
