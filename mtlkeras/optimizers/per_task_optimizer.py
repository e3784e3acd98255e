import contextlib
import types
import warnings

import keras
from keras import ops

from mtlkeras.optimizers.slot_learning_rate import SlotLearningRate
from mtlkeras.optimizers.variable_state import at_rest


@keras.saving.register_keras_serializable("mtlkeras")
class PerTaskOptimizer(keras.optimizers.Optimizer):
    """One clone of an optimizer per task group, behind one optimizer.

    The state of independent optimization (Pascal et al., 2021): every task
    group has an optimizer of its own, built on the variables that the group
    reaches (shared ones and its own heads), so moments and bias-correction
    counts are per group while the variables are shared. `MultiTaskModel`
    creates it from the user's optimizer; with a custom training loop use it by
    itself, with `apply_slot` for each group and `finish_batch` after the last.

    What must happen once per batch happens here and not in the clones:

    - `iterations` counts batches, and learning-rate schedules read it;
      a clone counts its own updates, for bias correction.
    - Decoupled weight decay of a variable is applied before its first update
      in a batch, at the rate without a task's factor.
    - The exponential moving average of the weights (`use_ema`) is kept once,
      of weights that fulfil their constraints already (Keras takes it before).

    Clipping, constraints, gradient accumulation and loss scaling act in each
    clone: every update is Keras's own `apply`.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, also a
            `LossScaleOptimizer`. It is the template and is not used itself.
            `ScheduleFreeAdamW` is refused where slots share variables, since
            it writes a variable anew from state of its own and would undo the
            other slots' updates.
        slots: List with one list per clone: the indices of the clone's
            variables in the list given to `build`. `None` is one clone on all
            variables. Defaults to `None`.
        names: List of strings, one per clone, for log keys. Defaults to
            `None` (numbers).
        factors: List of floats that multiply the clones' updates. Defaults to
            `None` (all 1).
        shared_scale: Float that multiplies the updates of variables that are
            in several slots. Defaults to `1.0`.
        fused: Boolean. Lets the trainer replace the elementwise update of
            well-known optimizers by one fused operation of the same formula
            (equal up to rounding) when there are several clones. Defaults to
            `True`.
        name: String. Defaults to `"per_task_optimizer"`.

    Example:

    >>> shared, head_a, head_b = (keras.Variable([1.0]) for _ in range(3))
    >>> optimizer = PerTaskOptimizer(
    ...     keras.optimizers.SGD(0.5), slots=[[0, 1], [0, 2]]
    ... )
    >>> optimizer.build([shared, head_a, head_b])
    >>> one = keras.ops.ones((1,))
    >>> optimizer.apply_slot(0, [one, one], [shared, head_a])
    >>> optimizer.apply_slot(1, [one, one], [shared, head_b])
    >>> optimizer.finish_batch()
    >>> [float(v.numpy()[0]) for v in (shared, head_a, head_b)]
    [0.0, 0.5, 0.5]

    References:
        - [Pascal et al., 2021](https://arxiv.org/abs/2109.11678)
    """

    def __init__(
        self,
        optimizer,
        slots=None,
        names=None,
        factors=None,
        shared_scale=1.0,
        fused=True,
        name="per_task_optimizer",
    ):
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                "Argument `optimizer` must be a `keras.optimizers.Optimizer` "
                f"instance. Received: optimizer={optimizer!r}"
            )
        inner = innermost(optimizer)
        super().__init__(
            learning_rate=0.0,
            use_ema=inner.use_ema,
            ema_momentum=inner.ema_momentum,
            ema_overwrite_frequency=inner.ema_overwrite_frequency,
            name=name,
        )
        self.fused = fused
        # Keras tracks the variables and optimizers in attributes, dicts and
        # lists; in here they are not saved a second time.
        self._untracked = types.SimpleNamespace(
            template=optimizer,
            rates={},  # clone -> its rate as the user sees it, and depth
            last_decay=None,
            first_update=None,
            update_if=lambda condition, update, variables: ops.cond(
                condition, update, lambda: None
            ),
        )
        self.optimizers = []
        self.slots = self.names = self.factors = None
        self.shared_scale = 1.0
        # Which draw of random groups is in force, for strategies that regroup
        # once per epoch: state, so that a resumed run goes on with it.
        self.draw = self.add_variable(
            shape=(), initializer="zeros", dtype="int64", name="draw"
        )
        if slots is not None:
            self.configure(slots, names, factors, shared_scale)

    def template(self):
        """The optimizer from which the clones were made.

        A method, since Keras saves every optimizer that it finds in an
        attribute or a property.
        """
        return self._untracked.template

    def configure(self, slots, names=None, factors=None, shared_scale=1.0):
        """Creates the clones, once, for the given slots (see `__init__`)."""
        if self.slots is not None:
            raise ValueError("The slots of a PerTaskOptimizer are set once.")
        slots = tuple(tuple(int(i) for i in slot) for slot in slots)
        count = len(slots)
        names = tuple(names or (str(i) for i in range(count)))
        factors = tuple(float(f) for f in factors or (1.0,) * count)
        if len(names) != count or len(factors) != count:
            raise ValueError(
                "Arguments `slots`, `names` and `factors` must have equal "
                f"length. Received: {count} slots, names={names}, "
                f"factors={factors}"
            )
        self._check_template(slots)
        self.slots, self.names, self.factors = slots, names, factors
        self.shared_scale = float(shared_scale)
        self.optimizers = [self._clone(self.template(), name) for name in names]

    def _check_template(self, slots):
        """Refuses updates that are not relative to the variable's value."""
        overwrites = getattr(keras.optimizers, "ScheduleFreeAdamW", None)
        template = innermost(self.template())
        if overwrites is None or not isinstance(template, overwrites):
            return
        indices = [i for slot in slots for i in set(slot)]
        if len(set(indices)) < len(indices):
            raise ValueError(
                "Slots that share variables need an optimizer that adds its "
                "update to the variable: ScheduleFreeAdamW writes the variable "
                "anew from state of its own, so each slot would undo the "
                f"others' updates. Received: optimizer={template.name} "
                f"({type(template).__name__}) with {len(slots)} slots. Use "
                "another optimizer such as `keras.optimizers.AdamW`, or one "
                "state for all tasks: strategy='joint', or `task_slots=False`."
            )

    def _clone(self, template, slot_name):
        name = f"{template.name}_{slot_name}"
        if isinstance(template, keras.optimizers.LossScaleOptimizer):
            return type(template)(
                self._clone(template.inner_optimizer, slot_name),
                initial_scale=template.initial_scale,
                dynamic_growth_steps=template.dynamic_growth_steps,
                name=name,
            )
        config = template.get_config()
        config["name"] = name
        rate = template._learning_rate
        if callable(rate):
            config["learning_rate"] = SlotLearningRate(
                rate, lambda: self._iterations
            )
        clone = type(template).from_config(config)
        # Kept once, in the container.
        clone.use_ema = False
        clone.ema_overwrite_frequency = None
        # `exclude_from_weight_decay` is no part of an optimizer's config.
        for attribute in (
            "_exclude_from_weight_decay",
            "_exclude_from_weight_decay_pattern",
        ):
            if hasattr(template, attribute):
                setattr(clone, attribute, getattr(template, attribute))
        # `apply` calls this hook exactly when an update really happens (past
        # accumulation and overflow checks); the container decides for which
        # variables it is the batch's first.
        decay = clone._apply_weight_decay
        clone._apply_weight_decay = lambda variables: self._decay(
            decay, clone, variables
        )
        if self.shared_scale != 1.0:
            # Per variable, not in two calls of the hook for all of them:
            # Nadam's has state that must move once per update.
            step = clone.update_step
            clone.update_step = lambda gradient, variable, rate: step(
                gradient, variable, ops.multiply(rate, self._scale_of(variable))
            )
        return clone

    def _scale_of(self, variable):
        """Factor on the learning rate of a variable's updates."""
        if self.shared_scale == 1.0:
            return 1.0
        index = self._get_variable_index(variable)
        is_shared = sum(index in slot for slot in self.slots) > 1
        return self.shared_scale if is_shared else 1.0

    def replace_branches(self, update_if):
        """Lets a backend say how an update depends on a condition.

        Args:
            update_if: Function from `(condition, update, variables)`, where
                `update` changes `variables`.
        """
        self._untracked.update_if = update_if

    def replace_update_steps(self, replace):
        """Lets a backend put its own elementwise update into the clones.

        Args:
            replace: Function from `(clone, update, scale_of)` to another
                `update(gradients, variables, learning_rate)`, where
                `scale_of(variable)` is a factor on the learning rate. The
                given `update` heeds it by itself.
        """
        for clone in map(innermost, self.optimizers):
            clone._backend_update_step = replace(
                clone, clone._backend_update_step, self._scale_of
            )

    def _decay(self, decay, clone, variables):
        if not decays(clone):
            return
        condition = self._untracked.first_update or self.decay_is_due
        by_condition = {}
        for v in variables:
            first = condition(v)
            if first is not False:
                by_condition.setdefault(id(first), (first, []))[1].append(v)
        for first, members in by_condition.values():

            def update(members=members, record=first is not True):
                with self._scaled_rate(clone, 1.0):
                    decay(members)
                if record:
                    self._record_decay(members)

            if first is True:
                update()
            else:
                changed = members + [self._untracked.last_decay]
                self._untracked.update_if(first, update, changed)

    def decay_is_due(self, variable):
        """Whether a variable has not decayed in this batch yet.

        Which sub-step is the first to really update a shared variable shows in
        the graph only: a clone may rest, accumulate or have overflown.
        """
        last_decay = self._untracked.last_decay
        if last_decay is None:
            return True
        index = self._get_variable_index(variable)
        return ops.less_equal(last_decay[index], self._iterations)

    def _record_decay(self, variables):
        last_decay = self._untracked.last_decay
        if last_decay is None:
            return
        indices = [self._get_variable_index(v) for v in variables]
        decayed = [i in indices for i in range(len(self._trainable_variables))]
        last_decay.assign(
            ops.where(
                ops.convert_to_tensor(decayed),
                self._iterations + 1,
                last_decay,
            )
        )

    @contextlib.contextmanager
    def _scaled_rate(self, clone, factor):
        """Within this scope the clone updates at a scaled learning rate.

        Not by assigning the rate's variable: callbacks read that one.
        """
        clone = innermost(clone)
        attributes = vars(clone)
        in_force = attributes["_learning_rate"]
        rates = self._untracked.rates
        rate, depth = rates.get(id(clone), (in_force, 0))
        rates[id(clone)] = (rate, depth + 1)
        attributes["_learning_rate"] = rate
        if factor != 1.0:
            scaled = ops.multiply(clone.learning_rate, factor)
            # Adafactor asks whether its rate is a number or a callable.
            attributes["_learning_rate"] = (
                (lambda: scaled) if callable(rate) else scaled
            )
        try:
            yield
        finally:
            # Replicas run interleaved: the last to leave puts the rate back.
            depth = rates[id(clone)][1] - 1
            rates[id(clone)] = (rate, depth)
            attributes["_learning_rate"] = in_force
            if depth == 0:
                attributes["_learning_rate"] = rate
                del rates[id(clone)]

    def build(self, variables):
        """Builds every clone on its variables out of the given ones."""
        if self.built:
            return
        variables = list(variables)
        if self.slots is None:
            self.configure([range(len(variables))])
        for slot in self.slots:
            if slot and max(slot) >= len(variables):
                raise ValueError(
                    "The slots of this PerTaskOptimizer refer to "
                    f"{max(map(max, self.slots)) + 1} variables or more, but "
                    f"`build` received {len(variables)}. Pass the variables "
                    "of the model that it was made for."
                )
        super().build(variables)
        if any(decays(innermost(clone)) for clone in self.optimizers):
            # The batch number at which each variable decayed last.
            self._untracked.last_decay = self.add_variable(
                shape=(len(variables),), dtype="int64", name="last_decay"
            )
        for clone, slot in zip(self.optimizers, self.slots, strict=True):
            clone.build([variables[i] for i in slot])

    def apply_slot(
        self, slot, gradients, variables, first_update=None, resting=()
    ):
        """Updates variables with one clone's state.

        Args:
            slot: Python integer, which clone.
            gradients: List of gradients.
            variables: List of variables out of those of the slot.
            first_update: Function of a variable that tells whether this is
                its first update in the batch (`True`, `False` or a boolean
                tensor), so that it decays once. Defaults to `None`: where it
                has not decayed since the last `finish_batch`.
            resting: List of `(rests, variables)`: these variables and the
                clone's state of them keep their values where the boolean
                tensor `rests` is true.
        """
        clone = self.optimizers[slot]
        self._untracked.first_update = first_update
        try:
            with (
                at_rest(innermost(clone), resting, self._untracked.update_if),
                self._scaled_rate(clone, self.factors[slot]),
            ):
                clone.apply(gradients, variables)
        finally:
            self._untracked.first_update = None

    def carry_over(self, optimizer):
        """Goes on from another optimizer's batch counter and learning rate.

        The clones start fresh, with counts of 0: emptied moments under an old
        count would make a first step several times too large.
        """
        self._iterations.assign(
            ops.cast(innermost(optimizer)._iterations, self._iterations.dtype)
        )
        if not callable(innermost(self.template())._learning_rate):
            self.learning_rate = float(
                ops.convert_to_numpy(optimizer.learning_rate)
            )
        if self.use_ema and self.built:
            for variable, average in zip(
                self._trainable_variables,
                self._model_variables_moving_average,
                strict=True,
            ):
                average.assign(variable)

    def finish_batch(self):
        """Moving average and batch counter, after the batch's updates."""
        if self.use_ema:
            variables = self._trainable_variables
            self._update_model_variables_moving_average(variables)
            if self.ema_overwrite_frequency:
                overwrite = (
                    self._iterations + 1
                ) % self.ema_overwrite_frequency == 0
                ops.cond(
                    overwrite,
                    lambda: self._overwrite_model_variables_with_average_value(
                        variables
                    ),
                    lambda: None,
                )
        self._iterations.assign_add(1)

    def apply(self, grads, trainable_variables=None):
        """One joint update; only for a container with a single slot."""
        if not self.built:
            self.build(trainable_variables)
        if len(self.slots) != 1:
            raise ValueError(
                f"This PerTaskOptimizer has {len(self.slots)} slots, so an "
                "update must name its slot: use `apply_slot(slot, gradients, "
                "variables)` for each and `finish_batch()` after the last."
            )
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        self.apply_slot(
            0, grads, trainable_variables, first_update=lambda variable: True
        )
        self.finish_batch()

    def scale_loss(self, loss, slot=0):
        """The loss as the given clone wants it for its gradients."""
        return self.optimizers[slot].scale_loss(loss)

    @property
    def inner_optimizer(self):
        """Where `keras.callbacks.SwapEMAWeights` looks for the averages.

        With `optimizers` it would look into each clone; the averages are kept
        once, in here. There is no such attribute without averages.
        """
        if not (self.use_ema and self.built):
            raise AttributeError("This optimizer averages no weights.")
        return types.SimpleNamespace(
            use_ema=True,
            _trainable_variables=self._trainable_variables,
            _model_variables_moving_average=(
                self._model_variables_moving_average
            ),
            _distribution_strategy=self._distribution_strategy,
        )

    @property
    def learning_rate(self):
        if not self.optimizers:
            return self.template().learning_rate
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        if not self.optimizers:
            self.template().learning_rate = learning_rate
        for clone in self.optimizers:
            clone.learning_rate = learning_rate

    @property
    def variables(self):
        variables = self._variables[:]
        for clone in self.optimizers:
            variables.extend(clone.variables)
        return variables

    def save_own_variables(self, store):
        # The clones are saved as children of their own.
        for i, variable in enumerate(self._variables):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store):
        if len(store.keys()) != len(self._variables):
            warnings.warn(
                f"Skipping the state of optimizer '{self.name}': it was saved "
                "by another optimizer or under another strategy "
                f"({len(store.keys())} variables instead of "
                f"{len(self._variables)}). Compile with the strategy of the "
                "saved model before loading to continue its training.",
                stacklevel=2,
            )
            return
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])

    def get_config(self):
        return {
            "optimizer": keras.saving.serialize_keras_object(self.template()),
            "slots": self.slots,
            "names": self.names,
            "factors": self.factors,
            "shared_scale": self.shared_scale,
            "fused": self.fused,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["optimizer"] = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        return cls(**config)


def innermost(optimizer):
    """The optimizer inside of any loss scaling."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def decays(optimizer):
    """Whether an optimizer has decoupled weight decay."""
    # Muon has a rate of its own for the variables that it leaves to Adam.
    rates = (
        optimizer.weight_decay,
        getattr(optimizer, "adam_weight_decay", None),
    )
    return any(rate is not None for rate in rates)


def is_adaptive(optimizer):
    """Whether an optimizer divides by the size of its gradients."""
    return not isinstance(innermost(optimizer), keras.optimizers.SGD)
