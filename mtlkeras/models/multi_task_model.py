import warnings

import keras

from mtlkeras import aggregators, balancers, strategies
from mtlkeras.backend.tensorflow import MultiTaskTrainer
from mtlkeras.callbacks.task_reporter import TaskReporter
from mtlkeras.metrics.task_metric import TaskMetric
from mtlkeras.metrics.total_loss import TotalLoss
from mtlkeras.models.data_spec import input_spec_of, is_empty
from mtlkeras.models.multi_task_state import MultiTaskState
from mtlkeras.models.task_graph import is_functional
from mtlkeras.models.task_set import TaskSet
from mtlkeras.optimizers.per_task_optimizer import (
    PerTaskOptimizer,
    innermost,
    is_adaptive,
)


class _InForce:
    """Default of `fit`'s update arguments: keep what is in force."""

    def __repr__(self):
        return "<in force>"


IN_FORCE = _InForce()


@keras.saving.register_keras_serializable("mtlkeras")
class MultiTaskModel(MultiTaskTrainer, keras.Model):
    """A `keras.Model` whose training treats its outputs as tasks.

    Everything that Keras does works as before; `compile` and `fit` take three
    more arguments that say how the tasks are trained together:

    - `strategy`: which tasks update together, and when;
    - `aggregator`: how several task gradients become one;
    - `balancer`: how much each task's loss counts.

    Without them it trains as `keras.Model`, bit for bit.

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

    def __new__(cls, *args, **kwargs):
        if cls is MultiTaskModel and _has_functional_arguments(args, kwargs):
            return super().__new__(FunctionalMultiTaskModel)
        return super().__new__(cls)

    # Keras revives a functional subclass only if its arguments have exactly
    # these names.
    def __init__(self, *args, **kwargs):
        functional = _has_functional_arguments(args, kwargs)
        if functional and not isinstance(self, FunctionalMultiTaskModel):
            # A subclass that builds its graph in `__init__`. Keras would
            # patch the bases of all classes up to Model, and with them this
            # one, after which a subclass with a `call` fails.
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

    # -- tasks and variables --------------------------------------------------

    @property
    def task_names(self):
        """Names of the tasks, a tuple in the order of the outputs."""
        tasks = self._multi_task.tasks
        if tasks is not None and tasks.built:
            return tasks.names
        if is_functional(self):
            return tuple(self._outputs_by_name())
        raise ValueError(
            "The tasks of a subclassed model are known once it has seen data. "
            "Compile it and call `fit`, `evaluate` or `train_on_batch` first."
        )

    @property
    def shared_variables(self):
        """Trainable variables that the losses of at least two tasks reach."""
        return self._plan_for_reading().shared_variables()

    def task_variables(self, name):
        """Trainable variables that only this task's loss reaches."""
        if name not in self.task_names:
            raise ValueError(
                "Argument `name` must be one of the model's tasks "
                f"{list(self.task_names)}. Received: name={name!r}"
            )
        return self._plan_for_reading().task_variables(name)

    @property
    def update_strategy(self):
        """The strategy in force."""
        strategy = self._multi_task.strategy
        if strategy is not None and strategy.regroups == "epoch":
            strategy.remember_draw(self.optimizer.draw.numpy())
        elif strategy is not None and strategy.regroups == "step":
            batches = int(keras.ops.convert_to_numpy(self.optimizer.iterations))
            strategy.remember_draw(max(batches - 1, 0))
        return strategy

    @property
    def aggregator(self):
        """The aggregator in force, or `None`."""
        return self._multi_task.aggregator

    @property
    def balancer(self):
        """The balancer in force, or `None`."""
        return self._multi_task.balancer

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
                object. Defaults to `None`: `loss_weights` alone.
            on_nonfinite: `"skip"` leaves out the update of a task whose loss
                or gradient is not finite, counts it and warns once per epoch;
                `"raise"` raises after the batch. Defaults to `"skip"`.
        """
        if on_nonfinite not in ("skip", "raise"):
            raise ValueError(
                "Argument `on_nonfinite` must be 'skip' or 'raise'. Received: "
                f"on_nonfinite={on_nonfinite!r}"
            )
        update = self._resolve_update(strategy, aggregator, balancer)
        given = keras.optimizers.get(optimizer)
        self._check_optimizer(given)
        tasks = TaskSet(loss, loss_weights)
        if loss is None:
            raise ValueError(
                "A MultiTaskModel needs a `loss`: its tasks are the outputs "
                "that have one. Received: loss=None"
            )
        state = MultiTaskState()
        state.tasks, state.on_nonfinite = tasks, on_nonfinite
        if is_functional(self):
            self._bind_outputs(state, self.output, update[0])
        state.user_optimizer = self._scaled(given, auto_scale_loss)
        state.compile_arguments = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "optimizer": given,
        }

        def wrap(metrics):
            return keras.tree.map_structure(
                lambda m: None if m is None else TaskMetric(m, state.flags),
                metrics,
            )

        super().compile(
            optimizer=state.user_optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=wrap(metrics),
            weighted_metrics=wrap(weighted_metrics),
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=False,
        )
        # From here on nothing can be refused.
        self._multi_task = state
        self._set_untracked("_compile_loss", tasks)
        self._set_untracked("_loss_tracker", TotalLoss(self._task_means))
        self._install(*update, optimizer=given)

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
        before = self._snapshot()
        update = self._resolve_update(
            self._multi_task.strategy if strategy is IN_FORCE else strategy,
            self.aggregator if aggregator is IN_FORCE else aggregator,
            self.balancer if balancer is IN_FORCE else balancer,
        )
        reporter = TaskReporter()
        reporter.batches = 0
        try:
            self._bind_early(x)
            self._change(*update)
            return super().fit(
                x=x,
                y=y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=_with_first(callbacks, reporter),
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
            if reporter.batches == 0:
                self._restore(before)
            raise

    def train_on_batch(self, x, y=None, *args, **kwargs):
        self._check_compiled("train_on_batch")
        self._bind_early(x)
        self._reset_counters()
        logs = super().train_on_batch(x, y, *args, **kwargs)
        self._raise_if_skipped()
        return logs

    def get_compile_config(self):
        state = self._multi_task
        if not self.compiled or state.strategy is None:
            return {}
        config = dict(state.compile_arguments)
        if state.strategy.updates_jointly and isinstance(
            self.optimizer, PerTaskOptimizer
        ):
            config["optimizer"] = self.optimizer
        config.update(
            jit_compile=self.jit_compile,
            strategy=state.strategy,
            aggregator=state.aggregator,
            balancer=state.balancer,
            on_nonfinite=state.on_nonfinite,
        )
        return {
            name: keras.saving.serialize_keras_object(value)
            for name, value in config.items()
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    # -- what is in force -----------------------------------------------------

    def _resolve_update(self, strategy, aggregator, balancer):
        """Strings become objects here; nothing below sees an id."""
        strategy = strategies.get(strategy)
        aggregator = aggregators.get(aggregator)
        balancer = balancers.get(balancer)
        overridden = type(self).compute_loss is not keras.Model.compute_loss
        if overridden and not strategy.updates_jointly:
            raise ValueError(
                f"The model {type(self).__name__} overrides `compute_loss`, "
                "which gives one total for all tasks, while "
                f"strategy={strategy!r} needs the loss of each. Give the "
                "losses to `compile(loss={...})`, or use strategy='joint'."
            )
        if self._multi_task.tasks is not None and self._multi_task.is_bound:
            strategy.bind(self._multi_task.tasks.names)
        return strategy, aggregator, balancer

    def _check_optimizer(self, optimizer):
        """Refuses an optimizer whose state belongs to another model."""
        if optimizer is getattr(self, "optimizer", None) or not optimizer.built:
            return
        if isinstance(optimizer, PerTaskOptimizer):
            variables = optimizer._trainable_variables
        else:
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            variables = inner._trainable_variables
        mine = {id(v) for v in self.variables}
        foreign = [v.path for v in variables if id(v) not in mine]
        if foreign:
            raise ValueError(
                "The optimizer was already built for another model: it holds "
                f"state for {foreign[:3]}{'...' if foreign[3:] else ''}. Pass "
                "a new optimizer, e.g. "
                f"`keras.optimizers.{type(optimizer).__name__}(...)`."
            )

    def _scaled(self, optimizer, auto_scale_loss):
        """Loss scaling under float16, inside of every clone."""
        if isinstance(optimizer, PerTaskOptimizer):
            return optimizer.template
        scaling = keras.optimizers.LossScaleOptimizer
        if (
            auto_scale_loss
            and self.dtype_policy.name == "mixed_float16"
            and not isinstance(optimizer, scaling)
        ):
            return scaling(optimizer, name="loss_scale_optimizer")
        return optimizer

    def _install(self, strategy, aggregator, balancer, optimizer=None):
        """Puts an update in force and gives it its optimizer."""
        state = self._multi_task
        state.strategy, state.aggregator = strategy, aggregator
        state.balancer = balancer
        if state.reach is not None:
            state.make_plan(self)
        given = isinstance(optimizer, PerTaskOptimizer)
        if given and strategy.updates_jointly:
            self._set_untracked("optimizer", optimizer)
        elif strategy.updates_jointly:
            self._set_untracked("optimizer", state.user_optimizer)
        else:
            self._set_untracked(
                "optimizer", PerTaskOptimizer(state.user_optimizer)
            )
        self._build_optimizer()
        if given and optimizer is not self.optimizer:
            self._take_over(optimizer)
        self._warn_of_cancelling_weights()
        self._make_counters()
        self.train_function = None

    def _change(self, strategy, aggregator, balancer):
        """Puts another update in force in the middle of training."""
        state = self._multi_task
        if (strategy, aggregator, balancer) == (
            state.strategy,
            state.aggregator,
            state.balancer,
        ):
            return
        old = self.optimizer
        trained = old.built and int(old.iterations) > 0
        if state.strategy == strategy:
            state.aggregator, state.balancer = aggregator, balancer
            self.train_function = None
            return
        optimizer = None
        if strategy.updates_jointly and trained:
            # The user's optimizer would start with the old count or without
            # the batch counter; a container of one slot has both right.
            optimizer = PerTaskOptimizer(state.user_optimizer)
        self._install(strategy, aggregator, balancer, optimizer)
        if isinstance(self.optimizer, PerTaskOptimizer) and trained:
            self.optimizer.carry_over(old)

    def _take_over(self, optimizer):
        """State of a container given to `compile`, where it fits."""
        if optimizer.built and optimizer.slots == self.optimizer.slots:
            pairs = zip(
                self.optimizer.variables, optimizer.variables, strict=True
            )
            for mine, other in pairs:
                mine.assign(other)

    def _build_optimizer(self):
        """Builds the optimizer as soon as the variables are known."""
        state, optimizer = self._multi_task, self.optimizer
        if state.plan is None or not self.built:
            return
        if isinstance(optimizer, PerTaskOptimizer):
            if optimizer.slots is None and not state.strategy.updates_jointly:
                plan = state.plan
                optimizer.configure(plan.slots, plan.slot_names, plan.factors)
            if not optimizer.built:
                optimizer.build(self.trainable_variables)
            if optimizer.fused and len(optimizer.slots) > 1:
                self._fuse_updates(optimizer)
        elif not optimizer.built:
            optimizer.build(self.trainable_variables)

    def _snapshot(self):
        state = self._multi_task
        return {
            "optimizer": self.optimizer,
            "train_function": self.train_function,
            "state": (state.strategy, state.aggregator, state.balancer),
            "plan": state.plan,
        }

    def _restore(self, before):
        state = self._multi_task
        state.strategy, state.aggregator, state.balancer = before["state"]
        state.plan = before["plan"]
        if state.strategy is not None and state.tasks.built:
            state.strategy.bind(state.tasks.names)
        if state.reach is not None and state.plan is None:
            state.make_plan(self)
        self._set_untracked("optimizer", before["optimizer"])
        self._build_optimizer()
        self.train_function = before["train_function"]

    # -- binding to outputs ---------------------------------------------------

    def _outputs_by_name(self):
        outputs = self.output
        if isinstance(outputs, dict):
            return dict(outputs)
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return dict(zip(self.output_names, flat, strict=True))

    def _bind_outputs(self, state, outputs, strategy, inputs=None):
        """Matches losses, variables and strategy with the outputs."""
        names = getattr(self, "output_names", None)
        state.tasks.bind(outputs, names)
        if type(self).compute_loss is not keras.Model.compute_loss:
            state.tasks.trackers = {}
        strategy.bind(state.tasks.names)
        by_name = state.tasks.split(outputs, "outputs")

        def find_connections(names):
            return self._find_connections(names, inputs)

        # The trainer's helper looks up the tasks on the model.
        previous, self._multi_task = self._multi_task, state
        try:
            state.analyse(self, by_name, find_connections)
        except Exception:
            self._multi_task = previous
            raise
        self._multi_task = previous

    def _bind_early(self, x):
        """Binds a subclassed model before `fit` starts, where data show how."""
        if self._multi_task.is_bound:
            return
        specs = input_spec_of(x)
        if specs is not None:
            self._bind_to(specs)

    def _bind_to(self, x):
        """Binds a subclassed model to the first data that it sees."""
        state = self._multi_task
        if state.is_bound:
            return
        specs = keras.tree.map_structure(
            lambda t: keras.KerasTensor(
                (None, *tuple(t.shape)[1:]),
                keras.backend.standardize_dtype(t.dtype),
            ),
            x,
        )
        outputs = self(specs)
        if not isinstance(outputs, dict):
            raise ValueError(
                "The `call` of a subclassed MultiTaskModel must return a dict "
                "from task names to tensors. The `call` of "
                f"{type(self).__name__} returned: {outputs!r}"
            )
        self._bind_outputs(state, outputs, state.strategy, specs)
        state.make_plan(self)
        self._build_optimizer()
        self._warn_of_cancelling_weights()
        self._make_counters()

    def _plan_for_reading(self):
        state = self._multi_task
        if state.plan is not None:
            return state.plan
        if not is_functional(self):
            raise ValueError(
                "Which variables a subclassed model's tasks share is known "
                "once it has seen data. Compile it and call `fit`, `evaluate` "
                "or `train_on_batch` first."
            )
        # Not compiled yet: every output is taken for a task.
        state = MultiTaskState()
        state.tasks = TaskSet("mean_squared_error", None)
        state.strategy = strategies.get("joint")
        self._bind_outputs(state, self.output, state.strategy)
        state.make_plan(self)
        return state.plan

    # -- what the step counts -------------------------------------------------

    def _make_counters(self):
        state = self._multi_task
        if state.plan is None or state.counters:
            return
        for name in ("labelled", "skipped"):
            state.counters[name] = keras.Variable(
                [0] * len(state.tasks.names),
                dtype="int32",
                trainable=False,
                name=name,
            )

    def _reset_counters(self):
        for counter in self._multi_task.counters.values():
            counter.assign(keras.ops.zeros_like(counter))

    def _counts(self):
        state = self._multi_task
        return tuple(
            dict(
                zip(
                    state.tasks.names,
                    state.counters[name].numpy().tolist(),
                    strict=True,
                )
            )
            for name in ("labelled", "skipped")
        )

    def _raise_if_skipped(self):
        if self._multi_task.on_nonfinite != "raise":
            return
        bad = [name for name, count in self._counts()[1].items() if count]
        if bad:
            raise FloatingPointError(
                f"The loss or a gradient of the tasks {bad} is not finite. "
                "Their update was left out and the model's weights are as "
                "they were before it. Compile with `on_nonfinite='skip'` to "
                "go on without such updates."
            )

    def _end_epoch(self):
        if self._multi_task.strategy.regroups == "epoch":
            self.optimizer.draw.assign(self.optimizer.iterations)

    # -- small print ----------------------------------------------------------

    def _task_means(self):
        tasks = self._multi_task.tasks
        return [
            (1.0 if tasks.weights[name] is None else tasks.weights[name], mean)
            for name, mean in tasks.trackers.items()
        ]

    def _warn_of_cancelling_weights(self):
        state = self._multi_task
        weights = state.tasks.weights if state.plan is not None else {}
        if (
            state.weights_warned
            or not state.strategy.task_slots
            or all(w is None or w == 1.0 for w in weights.values())
            or not is_adaptive(state.user_optimizer)
        ):
            return
        state.weights_warned = True
        warnings.warn(
            "With optimizer slots per task, an adaptive optimizer "
            f"({type(innermost(state.user_optimizer)).__name__}) cancels the "
            "scale of each task's loss, so `loss_weights` hardly change the "
            "training. To prioritise a task give the strategy "
            "`task_learning_rates={'task': factor}`.",
            stacklevel=3,
        )

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


# The class that Keras makes of `keras.Model(inputs, outputs)`; it has no
# public name.
_input = keras.Input((1,), name="x")
Functional = type(keras.Model(_input, _input, name="x"))
del _input


@keras.saving.register_keras_serializable("mtlkeras")
class FunctionalMultiTaskModel(MultiTaskModel, Functional):
    """What `MultiTaskModel(inputs, outputs)` makes; use that name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def _has_functional_arguments(args, kwargs):
    return (
        len(args) == 2
        or (len(args) == 1 and "outputs" in kwargs)
        or ("inputs" in kwargs and "outputs" in kwargs)
    )


def _make_functional(cls):
    """Replaces MultiTaskModel by its functional twin among a class's bases."""
    cls.__bases__ = tuple(
        FunctionalMultiTaskModel
        if base is MultiTaskModel
        else _make_functional(base)
        if issubclass(base, MultiTaskModel)
        else base
        for base in cls.__bases__
    )
    return cls


def _with_first(callbacks, reporter):
    """The user's callbacks after ours, which prepares what they save."""
    if callbacks is None:
        return [reporter]
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(reporter)
        reporter.set_model(callbacks.model)
        return callbacks
    if isinstance(callbacks, (list, tuple)):
        return [reporter, *callbacks]
    return [reporter, callbacks]
