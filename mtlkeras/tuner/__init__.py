"""Hyperparameter search with Keras Tuner."""

__all__ = ["MultiTaskHyperModel"]


def __getattr__(name):
    # Its base class is Keras Tuner's: imported when it is asked for, so that
    # `import mtlkeras` works without the extra.
    if name == "MultiTaskHyperModel":
        from mtlkeras.tuner.multi_task_hyper_model import MultiTaskHyperModel

        return MultiTaskHyperModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
