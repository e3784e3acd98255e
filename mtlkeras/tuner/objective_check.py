import keras
from keras_tuner import Tuner
from keras_tuner.errors import FatalValueError


class ObjectiveCheck(keras.callbacks.Callback):
    """Ends a search whose objective or baselines the logs do not have.

    Keras Tuner would note one failed trial after the other.

    Args:
        names: List of keys that the logs must have.
        at_once: Whether the first batch shows what there is, since no callback
            of the user's adds to the logs later.
    """

    def __init__(self, names, at_once):
        super().__init__()
        self.names = names
        self.at_once = at_once

    def on_train_batch_end(self, batch, logs=None):
        if self.at_once:
            self.at_once = False
            self._check(logs, [*logs, *(f"val_{key}" for key in logs)])

    def on_epoch_end(self, epoch, logs=None):
        # Not in every epoch, with `validation_freq`.
        if any(key.startswith("val_") for key in logs):
            self._check(logs, logs)

    def _check(self, logs, known):
        missing = [name for name in self.names if name not in known]
        if missing:
            raise FatalValueError(
                "The objective and the keys of `baselines` must be keys of the "
                "logs, '<task>_<metric>' or '<task>_loss', with 'val_' before "
                f"an objective. Received: {missing}. The tasks are "
                f"{list(self.model.task_names)}, and the logs have "
                f"{sorted(logs)}. Pass what is to be measured to "
                "`model.compile(metrics={...})`."
            )


def split_callbacks(callbacks):
    """The user's callbacks, the tuner's own, and the tuner, if any."""
    for position, callback in enumerate(callbacks):
        tuner = getattr(callback, "tuner", None)
        if isinstance(tuner, Tuner):
            return callbacks[:position], callbacks[position:], tuner
    return callbacks, [], None


def objective_names(tuner):
    """Keys of the logs that the objective needs."""
    objective = tuner.oracle.objective
    parts = getattr(objective, "objectives", [objective])
    names = [part.name for part in parts]
    if "default_objective" in names:
        raise FatalValueError(
            "The tuner has no objective. Pass `hypermodel.objective`, which "
            "balances the tasks, or `objective=keras_tuner.Objective("
            "'val_<task>_<metric>', 'max')`."
        )
    return names


def check_validation(names, args, kwargs):
    """Refuses what is measured in validation where there is none."""
    # `validation_data` is the eighth argument of `fit`.
    validated = len(args) > 6 or kwargs.get("validation_data") is not None
    measured = [name for name in names if name.startswith("val_")]
    if measured and not validated and not kwargs.get("validation_split"):
        raise FatalValueError(
            f"The search needs {measured}, which are measured in validation. "
            "Pass `validation_data` or `validation_split` to `search`."
        )
