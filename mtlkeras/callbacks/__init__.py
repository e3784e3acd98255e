from mtlkeras.callbacks.backup_and_resume import BackupAndResume

__all__ = ["BackupAndResume"]
