import dataclasses

import keras

from mtlkeras.backend.tensorflow import MultiTaskTrainer
from mtlkeras.callbacks.task_progress import TaskProgress
from mtlkeras.callbacks.task_reporter import TaskReporter, finish_batch
from mtlkeras.metrics.task_metric import TaskMetric
from mtlkeras.models.batch_counters import BatchCounters
from mtlkeras.models.class_weights import split_class_weight
from mtlkeras.models.data_spec import (
    input_spec_of,
    input_spec_of_built,
    is_empty,
)
from mtlkeras.models.frozen_tasks import FrozenTasks
from mtlkeras.models.multi_task_state import MultiTaskState
from mtlkeras.models.roaming_graph import RoamingGraph
from mtlkeras.models.task_access import TaskAccess
from mtlkeras.models.task_graph import is_functional
from mtlkeras.models.task_measurements import TaskMeasurements
from mtlkeras.models.task_set import TaskSet
from mtlkeras.models.task_structure import TaskStructure
from mtlkeras.models.update_in_force import UpdateInForce
from mtlkeras.optimizers.given_optimizer import as_template, check_unclaimed
from mtlkeras.optimizers.per_task_optimizer import (
    PerTaskOptimizer,
    innermost,
)
from mtlkeras.strategies.joint import Joint


class _InForce:
    """Default of `fit`'s update arguments: keep what is in force."""

    def __repr__(self):
        return "<in force>"


IN_FORCE = _InForce()


@keras.saving.register_keras_serializable("mtlkeras")
class MultiTaskModel(MultiTaskTrainer, TaskAccess, keras.Model):
    """A `keras.Model` whose training treats its outputs as tasks.

    Everything that Keras does works as before; `compile` and `fit` take three
    more arguments that say how the tasks are trained together:

    - `strategy`: which tasks update together, and when;
    - `aggregator`: how several task gradients become one;
    - `balancer`: how much each task's loss counts.

    Without them it trains as `keras.Model`, bit for bit (see `Joint`).

    It is made in three ways: from inputs and outputs, as a functional model,
    with a dict (task names are its keys), a list (names are the output layers'
    names) or one tensor as outputs; `MultiTaskModel.from_model(model)` from an
    existing functional model, with the same layers and weights; or as a
    subclass whose `call` returns a dict. An output without a loss is not a
    task.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
    >>> model = MultiTaskModel(
    ...     inputs,
    ...     {
    ...         "left": keras.layers.Dense(1)(trunk),
    ...         "right": keras.layers.Dense(1)(trunk),
    ...     },
    ... )
    >>> model.compile("adam", loss={"left": "mse", "right": "mse"})
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> history = model.fit(
    ...     x, {"left": y, "right": y}, strategy="alternating", verbose=0
    ... )
    >>> sorted(history.history)
    ['left_loss', 'loss', 'right_loss']
    """

    # The class for `MultiTaskModel(inputs, outputs)`, set where it is defined.
    _functional_form = None

    def __new__(cls, *args, **kwargs):
        if cls is MultiTaskModel and _has_functional_arguments(args, kwargs):
            return super().__new__(cls._functional_form)
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        functional = _has_functional_arguments(args, kwargs)
        if functional and not isinstance(self, self._functional_form):
            # A subclass that builds its graph in `__init__`.
            _make_functional(type(self))
        self._multi_task = MultiTaskState()
        super().__init__(*args, **kwargs)

    @classmethod
    def from_model(cls, model):
        """A multi-task model with the layers and weights of an existing one.

        Args:
            model: A functional Keras model.

        Returns:
            A `MultiTaskModel` that shares layers and weights with `model`.
        """
        if not isinstance(model, keras.Model) or not hasattr(model, "input"):
            raise ValueError(
                "`MultiTaskModel.from_model` needs a functional Keras model, "
                "whose graph of layers is known. Received: "
                f"model={model!r}. For a subclassed model derive your class "
                "from `mtlkeras.MultiTaskModel` in place of `keras.Model`."
            )
        return cls(model.input, model.output, name=model.name)

    @classmethod
    def with_roaming(
        cls,
        model,
        sharing_ratio=0.8,
        dense=False,
        batch_statistics=False,
        seed=None,
    ):
        """A multi-task model in which every task uses its own units.

        Behind the normalization of each convolution that several outputs use
        comes a `layers.RoamingMask`. Train it with `callbacks.MaximumRoaming`
        for Maximum Roaming, without for task routing. The trunk runs once per
        task, in training and in prediction.

        Args:
            model: A functional Keras model with several outputs.
            sharing_ratio: Float, the share of the units that a task uses.
                Defaults to `0.8`.
            dense: Whether to mask shared dense layers, too. Defaults to
                `False` (the authors' code).
            batch_statistics: Whether normalization uses the statistics of the
                batch in inference, too (the authors' code), in place of moving
                ones for each task. Defaults to `False`.
            seed: Non-negative integer for the masks. Defaults to `None`.

        Returns:
            A `MultiTaskModel` with the layers and weights of `model`, but for
            `BatchNormalization`, which becomes a `TaskBatchNormalization` with
            the same values.
        """
        graph = RoamingGraph(
            model, sharing_ratio, dense, batch_statistics, seed
        )
        return cls(graph.inputs, graph.outputs, name=model.name)

    # -- tasks and variables --------------------------------------------------

    @property
    def task_names(self):
        """Names of the tasks, a tuple in the order of the outputs."""
        return self._bound_tasks()[0].names

    @property
    def shared_variables(self):
        """Trainable variables that the losses of at least two tasks reach."""
        return self._bound_tasks()[1].shared_variables()

    def task_variables(self, name):
        """Trainable variables that only this task's loss reaches."""
        if name not in self.task_names:
            raise ValueError(
                "Argument `name` must be one of the model's tasks "
                f"{list(self.task_names)}. Received: name={name!r}"
            )
        return self._bound_tasks()[1].task_variables(name)

    @property
    def update_strategy(self):
        """The strategy in force, or `None` before `compile`."""
        update = self._multi_task.update
        if update is None:
            return None
        update.strategy.remember_draw(self.optimizer)
        return update.strategy

    @property
    def aggregator(self):
        """The aggregator in force, or `None`."""
        update = self._multi_task.update
        return None if update is None else update.aggregator

    @property
    def balancer(self):
        """The balancer in force, or `None`."""
        update = self._multi_task.update
        return None if update is None else update.balancer

    @property
    def _strategy_state(self):
        # Keras saves what it finds in properties.
        update = self._multi_task.update
        return None if update is None else update.strategy.state

    @property
    def _frozen_tasks(self):
        # Keras saves what it finds in properties, too.
        return self._multi_task.frozen

    def _freeze_tasks(self, freezes):
        """Whether the training step is to heed which tasks are frozen."""
        if self._multi_task.freezes != freezes:
            self._multi_task.freezes = freezes
            self.make_train_function(force=True)

    def _measure_tasks(self, every):
        """Lets the training step measure tasks in every n-th batch.

        Args:
            every: Integer, or `None`: no more.

        Returns:
            The `TaskMeasurements` that it fills.
        """
        state = self._multi_task
        state.measurements = None
        if every is not None:
            self._check_one_device("TaskMonitor")
            if type(self).compute_loss is not keras.Model.compute_loss:
                raise ValueError(
                    "`TaskMonitor` needs the loss of each task. Received: the "
                    f"model {type(self).__name__}, which overrides "
                    "`compute_loss` with one total for all."
                )
            names, strategy = state.tasks.names, state.strategy
            # Of groups that are drawn anew none has a motion of its own.
            fixed = strategy.regroups == "never"
            state.measurements = TaskMeasurements(
                names,
                state.plan.groups if fixed else (names,),
                every,
                strategy.one_group_per_step,
            )
        self.make_train_function(force=True)
        return state.measurements

    # -- compile and fit ------------------------------------------------------

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        strategy="joint",
        aggregator=None,
        balancer=None,
        on_nonfinite="skip",
    ):
        """Configures the model for training; see `keras.Model.compile`.

        Args:
            strategy: Which tasks update together, and when: an id out of
                `mtlkeras.strategies.ids()`, a config or an object. Defaults
                to `"joint"`.
            aggregator: How several task gradients become one: an id, a config
                or an object. Defaults to `None`: they are added.
            balancer: How much each task's loss counts: an id, a config or an
                object. Defaults to `None`: by `loss_weights` alone.
            on_nonfinite: `"skip"` leaves out the update of a task whose loss
                or gradient is not finite, with its group's share of the
                regularizers, counts it and warns once per epoch; `"raise"`
                raises after the batch. Defaults to `"skip"`.
        """
        if on_nonfinite not in ("skip", "raise"):
            raise ValueError(
                "Argument `on_nonfinite` must be 'skip' or 'raise'. Received: "
                f"on_nonfinite={on_nonfinite!r}"
            )
        if loss is None:
            raise ValueError(
                "A MultiTaskModel needs a `loss`: its tasks are the outputs "
                "that have one. Received: loss=None"
            )
        given = keras.optimizers.get(optimizer)
        check_unclaimed(given, self.variables)
        self._check_distribution(
            innermost(given), jit_compile, steps_per_execution
        )
        update = self._resolve(strategy, aggregator, balancer)
        arguments = {
            "optimizer": given,
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
        }
        state = MultiTaskState(
            TaskSet(loss, loss_weights),
            arguments,
            as_template(
                given,
                auto_scale_loss and self.dtype_policy.name == "mixed_float16",
            ),
            on_nonfinite,
        )
        update.check_accumulation(state.user_optimizer)
        if is_functional(self):
            self._bind_outputs(state, self.output, update)
        before = dict(vars(self))
        try:
            super().compile(
                optimizer=state.user_optimizer,
                loss=loss,
                loss_weights=loss_weights,
                metrics=_task_metrics(metrics, state.flags),
                weighted_metrics=_task_metrics(weighted_metrics, state.flags),
                run_eagerly=run_eagerly,
                steps_per_execution=steps_per_execution,
                jit_compile=jit_compile,
                auto_scale_loss=False,
            )
        except Exception:
            # Keras replaces the optimizer before it looks at the metrics.
            vars(self).update(before)
            raise
        # From here on nothing can be refused.
        self._multi_task = state
        self._set_untracked("_compile_loss", state.tasks)
        self._set_untracked("_loss_tracker", state.tasks.total_loss)
        update = update.with_optimizer(state.user_optimizer)
        if isinstance(given, PerTaskOptimizer):
            update = update.with_given(given, state.structure, self)
        self._put_in_force(update)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
        strategy=IN_FORCE,
        aggregator=IN_FORCE,
        balancer=IN_FORCE,
    ):
        """Trains the model; see `keras.Model.fit`.

        Args:
            verbose: As in Keras. With more than five tasks the progress bar
                shows the total and the three tasks with the largest loss; the
                history has all.
            class_weight: Dict from task names to dicts from class indices to
                weights, `{"task": {0: 1.0, 1: 5.0}}`, which multiply the sample
                weights; for one task also Keras's own form.
            strategy: As in `compile`, from this call on. Left out, the one in
                force stays; `None` is `"joint"`. A strategy equal to the one
                in force changes nothing; another one keeps weights, learning
                rate and the batch counter and starts with fresh optimizer
                slots.
            aggregator: As in `compile`. Left out, the one in force stays;
                `None` removes it.
            balancer: As in `compile`. Left out, the one in force stays;
                `None` removes it.

        Returns:
            A `keras.callbacks.History`.
        """
        self._check_compiled("fit")
        if is_empty(x):
            raise ValueError(
                "The data set given to `fit` must hold at least one batch. "
                "Received an empty one."
            )
        with self._distribution_scope():
            update = self._resolve(
                self._multi_task.strategy if strategy is IN_FORCE else strategy,
                self.aggregator if aggregator is IN_FORCE else aggregator,
                self.balancer if balancer is IN_FORCE else balancer,
            )
        before = (self._multi_task.update, self.train_function)
        reporter = TaskReporter()
        try:
            with self._distribution_scope():
                self._bind_early(x)
                self._change(update)
            class_weight = self._take_class_weights(class_weight)
            return super().fit(
                x=x,
                y=y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=_with_ours(callbacks, reporter, self, verbose),
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                class_weight=class_weight,
                sample_weight=sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )
        except Exception:
            # Refused before it trained: the model stays as it was.
            if not reporter.has_trained:
                self._put_in_force(before[0])
                self.train_function = before[1]
            raise
        finally:
            # The list is the user's, who may use it again.
            if isinstance(callbacks, keras.callbacks.CallbackList):
                if reporter in callbacks.callbacks:
                    callbacks.callbacks.remove(reporter)

    def _take_class_weights(self, class_weight):
        """Keeps the class weights by task; returns what is left for Keras."""
        state = self._multi_task
        names = state.tasks.names if state.structure is not None else None
        found, left = split_class_weight(class_weight, names)
        if found != state.class_weights:
            state.class_weights = found
            self.train_function = None
        return left

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Loss and metrics on a data set; see `keras.Model.evaluate`.

        Args:
            verbose: As in Keras. With more than five tasks the progress bar
                shows the total and the three tasks with the largest loss.

        Returns:
            The total loss and the values of all tasks, as Keras returns them.
        """
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = _with_bar(keras.tree.flatten(callbacks or []), verbose)
        return super().evaluate(
            x=x,
            y=y,
            batch_size=batch_size,
            verbose=verbose,
            sample_weight=sample_weight,
            steps=steps,
            callbacks=callbacks,
            return_dict=return_dict,
            **kwargs,
        )

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check_compiled("train_on_batch")
        with self._distribution_scope():
            self._bind_early(x)
        logs = super().train_on_batch(x, y, *args, **kwargs)
        finish_batch(self)
        self._multi_task.counters.reset()
        return logs

    def get_compile_config(self):
        state = self._multi_task
        if state.update is None:
            return {}
        config = dict(state.arguments)
        # After a change of strategy a joint update may need a container, too.
        if state.strategy.updates_jointly and isinstance(
            self.optimizer, PerTaskOptimizer
        ):
            config["optimizer"] = self.optimizer
        config.update(
            jit_compile=self.jit_compile,
            strategy=state.strategy,
            aggregator=self.aggregator,
            balancer=self.balancer,
            on_nonfinite=state.on_nonfinite,
        )
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in config.items()
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self._multi_task.structure is None and self.built:
            # A subclassed model: its optimizer needs to be built for loading.
            specs = input_spec_of_built(self)
            if specs is not None:
                self._bind_to(specs)

    # -- what is in force -----------------------------------------------------

    def _resolve(self, strategy, aggregator, balancer):
        """Strings become objects here; nothing below sees an id."""
        update = UpdateInForce.resolve(strategy, aggregator, balancer)
        if self._multi_task.update is None or (
            update.strategy is not self._multi_task.strategy
        ):
            update = update.without_state()
        if type(self).compute_loss is not keras.Model.compute_loss and (
            not update.strategy.updates_jointly or update.balancer is not None
        ):
            needs = f"strategy={update.strategy!r}"
            if update.balancer is not None:
                needs = f"balancer={type(update.balancer).__name__}"
            raise ValueError(
                f"The model {type(self).__name__} overrides `compute_loss`, "
                f"which gives one total for all tasks, while {needs} needs the "
                "loss of each. Give the losses to `compile(loss={...})`, or "
                "use strategy='joint' without a balancer."
            )
        if self._multi_task.structure is not None:
            update.check(self._multi_task.tasks.names)
        return update

    def _change(self, update):
        """Puts another update in force in the middle of training."""
        state, old = self._multi_task, self.optimizer
        if update.same_as(state.update):
            return
        update = update.with_rules_of(state.update)
        if update.strategy == state.strategy:
            update = dataclasses.replace(
                state.update,
                aggregator=update.aggregator,
                balancer=update.balancer,
            )
        else:
            update = update.with_optimizer(state.user_optimizer, before=old)
        self._put_in_force(update)
        if self.optimizer is not old:
            update.carry_over(old)

    def _put_in_force(self, update):
        state = self._multi_task
        if state.structure is not None:
            update = update.with_structure(state.structure)
            update.build_optimizer(self)
            for aggregator in update.group_aggregators:
                self._prepare_aggregator(aggregator)
            if state.counters is None:
                state.counters = BatchCounters(state.tasks.names)
                state.frozen = FrozenTasks(state.tasks.names)
            if not state.warned_of_weights:
                state.warned_of_weights = update.warn_if_weights_cancel(
                    state.tasks
                )
        state.update = update
        self._set_untracked("optimizer", update.optimizer)
        self.train_function = None

    # -- binding to outputs ---------------------------------------------------

    def _bind_outputs(self, state, outputs, update, inputs=None):
        """Matches losses, variables and strategy with the outputs."""
        state.tasks.bind(outputs, getattr(self, "output_names", None))
        if type(self).compute_loss is not keras.Model.compute_loss:
            state.tasks.trackers = {}
        update.check(state.tasks.names)
        state.structure = TaskStructure(
            self,
            state.tasks,
            outputs,
            lambda: self._find_connections(state.tasks, inputs),
        )

    def _bind_early(self, x):
        """Binds a subclassed model before `fit` starts, where data show how."""
        if self._multi_task.structure is None:
            specs = input_spec_of(x)
            if specs is not None:
                self._bind_to(specs)

    def _bind_to(self, x):
        """Binds a subclassed model to the first data that it sees."""
        state = self._multi_task
        if state.structure is not None:
            return
        specs = keras.tree.map_structure(
            lambda t: keras.KerasTensor(
                (None, *tuple(t.shape)[1:]),
                keras.backend.standardize_dtype(t.dtype),
            ),
            x,
        )
        outputs = self._as_dict(self(specs))
        state.input_specs = specs
        self._bind_outputs(state, outputs, state.update, specs)
        self._put_in_force(state.update)

    def _bound_tasks(self):
        """`(tasks, structure)` for reading, before `compile`, too."""
        state = self._multi_task
        if state.structure is None and is_functional(self):
            # Not compiled yet: every output is taken for a task.
            state = MultiTaskState(TaskSet("mean_squared_error", None))
            self._bind_outputs(state, self.output, UpdateInForce(Joint()))
        if state.structure is None:
            raise ValueError(
                "The tasks of a subclassed model are known once it has seen "
                "data. Compile it and call `fit`, `evaluate` or "
                "`train_on_batch` first."
            )
        return state.tasks, state.structure

    # -- small print ----------------------------------------------------------

    def _check_compiled(self, method):
        if not self.compiled:
            raise ValueError(
                f"`{method}` needs a compiled model: call "
                "`model.compile(optimizer=..., loss=..., strategy=...)` before "
                f"`model.{method}(...)`."
            )

    def _set_untracked(self, name, value):
        # Keras sets these attributes in a scope without tracking, too.
        object.__setattr__(self, name, value)


def _has_functional_arguments(args, kwargs):
    return (
        len(args) == 2
        or (len(args) == 1 and "outputs" in kwargs)
        or ("inputs" in kwargs and "outputs" in kwargs)
    )


def _make_functional(cls):
    """Replaces MultiTaskModel by its functional twin among a class's bases."""
    cls.__bases__ = tuple(
        MultiTaskModel._functional_form
        if base is MultiTaskModel
        else _make_functional(base)
        if issubclass(base, MultiTaskModel)
        else base
        for base in cls.__bases__
    )
    return cls


def _task_metrics(metrics, flags):
    """The user's metrics, each inside a `TaskMetric`."""
    return keras.tree.map_structure(
        lambda m: None if m is None else TaskMetric(m, flags), metrics
    )


def _with_ours(callbacks, reporter, model, verbose):
    """The user's callbacks between ours.

    The first one prepares what they save, the last one is the progress bar.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.callbacks.insert(0, reporter)
        reporter.set_model(model)
        return callbacks
    callbacks = [reporter, *keras.tree.flatten(callbacks or [])]
    return _with_bar(callbacks, verbose)


def _with_bar(callbacks, verbose):
    """With our progress bar, where there is to be one and none is there."""
    bars = [
        c for c in callbacks if isinstance(c, keras.callbacks.ProgbarLogger)
    ]
    return callbacks if bars or verbose == 0 else [*callbacks, TaskProgress()]
