from mtlkeras.callbacks.backup_and_resume import BackupAndResume
from mtlkeras.callbacks.delta_m import DeltaM

__all__ = ["BackupAndResume", "DeltaM"]
