from mtlkeras.optimizers.per_task_optimizer import PerTaskOptimizer

__all__ = ["PerTaskOptimizer"]
