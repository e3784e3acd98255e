import keras

try:
    import keras_tuner

    # Every trial imports it, and Keras Tuner does not install it.
    import tensorboard  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "`mtlkeras.tuner` searches with Keras Tuner, but the package "
        f"`{error.name}` is not installed. Install it with: "
        '`pip install "mtlkeras[tuner]"`'
    ) from error

from mtlkeras.callbacks import DeltaM
from mtlkeras.tuner.objective_check import (
    ObjectiveCheck,
    check_validation,
    objective_names,
    split_callbacks,
)
from mtlkeras.tuner.single_task_baselines import SingleTaskBaselines
from mtlkeras.tuner.update_space import UpdateSpace

DELTA_M = "val_delta_m"
WITHOUT_BASELINES = (
    "The objective 'val_delta_m' compares with single-task baselines. "
    "Received: baselines=None. Pass `baselines='train'` or a dict such as "
    "{'left_accuracy': 0.9} to `MultiTaskHyperModel`, or give the tuner "
    "another objective."
)


class MultiTaskHyperModel(keras_tuner.HyperModel):
    """Makes the way in which tasks are trained together a hyperparameter.

    It wraps the function that builds your model, as any tuner of Keras Tuner
    takes it, and adds hyperparameters: `strategy`, `aggregator` and `balancer`,
    for each of them the arguments that are worth a search (such as `cagrad/c`),
    `learning_rate` and `task_learning_rates/<task>`. Only combinations that
    work come up: an aggregator is asked for where tasks update together.

    With `baselines` it also has an `objective` that balances the tasks:
    `val_delta_m`, the mean relative gain over one network per task in percent,
    negative where the model is better (see `callbacks.DeltaM`). A total loss is
    decided by the tasks whose losses are large, and means something else under
    other loss weights.

    Args:
        build: Function that takes a `keras_tuner.HyperParameters` and returns a
            new `MultiTaskModel`, or a `keras_tuner.HyperModel` that has such a
            `build`. The strategy, aggregator and balancer that the model was
            compiled with are replaced.
        strategies: List of ids, classes or objects to choose from, or a dict
            that gives them names. An id or a class stands for a method and
            its hyperparameters, an object for one with the arguments that it
            has. The first is the default. Defaults to
            `("joint", "alternating")`.
        aggregators: As `strategies`; `None` in it is no aggregator. Defaults
            to `(None,)`.
        balancers: As `strategies`; `None` in it is no balancer. Defaults to
            `(None,)`.
        learning_rate: The search space of the optimizer's learning rate: a
            tuple `(min, max)`, sampled logarithmically, or a list of choices.
            It begins with the one that the model was compiled with, which it
            replaces. Defaults to `None`: that one stays.
        task_learning_rates: The same for the factors on the updates of single
            tasks, under the strategies in which every task has optimizer slots
            of its own; a dict `{task: space}` for some of the tasks. Defaults
            to `None`: no factors.
        search_spaces: Dict from id or class to a dict from argument to its
            space: `(min, max)`, `(min, max, "log")`, a list of choices, or a
            dict of spaces. It replaces what
            `mtlkeras/tuner/search_spaces.py` holds for this method; `{}`
            leaves the defaults alone. Defaults to `None`.
        baselines: `"train"`, or a dict from keys of the training logs, such as
            `"left_accuracy"`, to numbers. With `"train"` the first trial is
            preceded by one run per task, on the same data with the same
            arguments of `fit`: the model at its default hyperparameters,
            updated by this task alone. The best values over the epochs count.
            They are kept in the project's folder, for the trials after a
            resumed search and of other workers. Defaults to `None`: there is
            no such objective.
        higher_is_better: As in `callbacks.DeltaM`. Its keys choose what is
            measured when the baselines are trained. Defaults to `None`: every
            metric of every task, or `<task>_loss` of a task without one, in
            the direction that its name tells.
        groups: As in `callbacks.DeltaM`. Defaults to `None`.
        baseline_epochs: Integer, the epochs of a baseline's run. Defaults to
            `None`: as many as a trial has, under Hyperband the longest.
        compile_arguments: Dict of the arguments of `model.compile` for a
            `build` that returns models that are not compiled. Defaults to
            `None`.
        seed: Integer, for strategies that draw: those that are built from an
            id or a class. Defaults to `0`.
        name: String. Defaults to `None`.
        tunable: As in `keras_tuner.HyperModel`. Defaults to `True`.

    Raises:
        ValueError: If an argument is not as above, when the tuner is made, or
            when the first trial has seen that the logs do not have the
            objective.

    Example:

    >>> import keras_tuner
    >>> def build(hp):
    ...     inputs = keras.Input((4,))
    ...     units = hp.Int("units", 8, 32)
    ...     trunk = keras.layers.Dense(units, activation="relu")(inputs)
    ...     heads = {n: keras.layers.Dense(1)(trunk) for n in ("left", "right")}
    ...     model = mtlkeras.MultiTaskModel(inputs, heads)
    ...     model.compile("adam", loss={"left": "mse", "right": "mse"})
    ...     return model
    >>> hypermodel = MultiTaskHyperModel(
    ...     build,
    ...     strategies=("joint", "alternating"),
    ...     aggregators=(None, "cagrad"),
    ...     learning_rate=(1e-4, 1e-2),
    ...     baselines="train",
    ... )
    >>> hp = keras_tuner.HyperParameters()
    >>> hypermodel.build(hp).update_strategy
    Joint()
    >>> [space.name for space in hp.space]
    ['units', 'strategy', 'aggregator', 'cagrad/c', 'learning_rate']
    >>> hp.values["strategy"] = "alternating"
    >>> type(hypermodel.build(hp).update_strategy).__name__
    'Alternating'

    A search is then Keras Tuner's own:
    `keras_tuner.RandomSearch(hypermodel, hypermodel.objective, max_trials=20)`
    and its `search(x, y, validation_data=...)`.

    References:
        - [KerasTuner](https://keras.io/keras_tuner/)
        - [Maninis et al., 2019](https://arxiv.org/abs/1904.08918), for the
          relative gain over single-task networks
    """

    def __init__(
        self,
        build,
        strategies=("joint", "alternating"),
        aggregators=(None,),
        balancers=(None,),
        learning_rate=None,
        task_learning_rates=None,
        search_spaces=None,
        baselines=None,
        higher_is_better=None,
        groups=None,
        baseline_epochs=None,
        compile_arguments=None,
        seed=0,
        name=None,
        tunable=True,
    ):
        super().__init__(name, tunable)
        if not callable(build) and not isinstance(
            build, keras_tuner.HyperModel
        ):
            raise ValueError(
                "Argument `build` must be a function `build(hp)` that returns "
                "a MultiTaskModel, or a `keras_tuner.HyperModel`. Received: "
                f"build={build!r}"
            )
        self.inner = build
        self.update_space = UpdateSpace(
            strategies,
            aggregators,
            balancers,
            learning_rate,
            task_learning_rates,
            search_spaces,
            seed,
        )
        self.baselines = None
        if baselines is not None:
            self.baselines = SingleTaskBaselines(
                baselines, higher_is_better, groups, baseline_epochs
            )
        elif not (higher_is_better is groups is baseline_epochs is None):
            raise ValueError(
                "Arguments `higher_is_better`, `groups` and `baseline_epochs` "
                "say how to use `baselines`. Received: baselines=None. Pass "
                "baselines='train' or a dict."
            )
        self.compile_arguments = compile_arguments

    @property
    def objective(self):
        """`keras_tuner.Objective("val_delta_m", "min")`.

        Raises:
            ValueError: Without `baselines`.
        """
        if self.baselines is None:
            raise ValueError(WITHOUT_BASELINES)
        return keras_tuner.Objective(DELTA_M, direction="min")

    def build(self, hp):
        """The model for some hyperparameters, compiled and in force."""
        model = self.build_inner(hp)
        self.update_space.apply(hp, model)
        if self.baselines is not None:
            self.baselines.check_tasks(model)
        return model

    def build_inner(self, hp):
        """What `build` gave, compiled, with nothing of ours in force."""
        build = self.inner.build if self._has_own_fit else self.inner
        model = build(hp)
        if not hasattr(model, "update_strategy"):
            raise keras_tuner.errors.FatalValueError(
                "`build(hp)` must return a `mtlkeras.MultiTaskModel`; "
                "`MultiTaskModel.from_model` makes one of a functional model. "
                f"Received: {model!r}"
            )
        if not model.compiled:
            if self.compile_arguments is None:
                raise keras_tuner.errors.FatalValueError(
                    "`build(hp)` returned a model that is not compiled. Call "
                    "`model.compile(...)` in it, or pass `compile_arguments="
                    "{'optimizer': ..., 'loss': ...}`."
                )
            model.compile(**fresh(self.compile_arguments))
        return model

    def fit(self, hp, model, *args, **kwargs):
        """Trains a model for a trial; Keras Tuner calls it."""
        # `Tuner(loss=...)` compiles anew after `build`.
        if not self.update_space.is_applied(model):
            self.update_space.apply(hp, model)
        callbacks = list(kwargs.pop("callbacks", None) or [])
        given, own, tuner = split_callbacks(callbacks)
        needed = []
        # The user's own `fit` may compute its objective after the training.
        if tuner is not None and not self._has_own_fit:
            needed = objective_names(tuner)
            check_validation(needed, args, kwargs)
        added = []
        if self.baselines is not None:
            values = self.baselines.find(self, hp, tuner, args, kwargs)
            added = [DeltaM(*self.baselines.settings(values))]
            needed = [name for name in needed if name != DELTA_M]
            needed += [f"val_{key}" for key in values]
        elif DELTA_M in needed:
            raise keras_tuner.errors.FatalValueError(WITHOUT_BASELINES)
        check = ObjectiveCheck(needed, at_once=not given)
        # `val_delta_m` comes before what reads it, and the check after the
        # user's callbacks, which may log what the tuner looks for.
        callbacks = [*added, *given, check, *own]
        return self.fit_inner(hp, model, *args, callbacks=callbacks, **kwargs)

    def fit_inner(self, hp, model, *args, **kwargs):
        """Trains a model as the user's own hypermodel does, or Keras."""
        if self._has_own_fit:
            return self.inner.fit(hp, model, *args, **kwargs)
        return model.fit(*args, **kwargs)

    @property
    def _has_own_fit(self):
        return isinstance(self.inner, keras_tuner.HyperModel)


def fresh(arguments):
    """Arguments of `compile` with an optimizer of the model's own."""
    optimizer = arguments.get("optimizer")
    if isinstance(optimizer, keras.optimizers.Optimizer):
        config = optimizer.get_config()
        return {**arguments, "optimizer": type(optimizer).from_config(config)}
    return dict(arguments)
