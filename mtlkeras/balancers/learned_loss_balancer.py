import keras
from keras import ops

from mtlkeras.backend.tensorflow.derivative import variable_gradients
from mtlkeras.balancers.loss_balancer import LossBalancer


class LearnedLossBalancer(LossBalancer):
    """Base class of balancers with variables that are learned.

    They are learned by an optimizer of their own, without weight decay, and
    step once per batch: down the gradient of `objective`, which is the total
    loss unless a subclass says otherwise. Make them in `build_state` with
    `add_learned`. Values of tasks that did not train in a batch rest, with
    their part of the optimizer's state; its step count, which is one for all
    tasks, rests where no task trained.

    Args:
        learning_rate: Float, of the balancer's own variables.
        optimizer: Id of a Keras optimizer. Defaults to `"adam"`.
        **kwargs: As for `LossBalancer`.
    """

    def __init__(self, learning_rate=1e-3, optimizer="adam", **kwargs):
        super().__init__(**kwargs)
        if not isinstance(optimizer, str):
            raise ValueError(
                "Argument `optimizer` must be the id of a Keras optimizer, "
                f"such as 'adam'. Received: optimizer={optimizer!r}"
            )
        if not float(learning_rate) >= 0:
            raise ValueError(
                "Argument `learning_rate` must be a number that is not "
                f"negative. Received: learning_rate={learning_rate!r}"
            )
        self.learning_rate = float(learning_rate)
        self.optimizer_id = optimizer
        self.optimizer = None  # made with the variables that it learns
        self._learned = []

    def _new_optimizer(self):
        config = {"learning_rate": self.learning_rate}
        return keras.optimizers.get(
            {"class_name": self.optimizer_id, "config": config}
        )

    def objective(self, task_losses):
        """The scalar that the learned variables minimise."""
        return self.call(task_losses)

    def add_learned(self, name, shape, initializer="zeros"):
        """A variable that is learned, saved, restored and reset."""
        initializer = keras.initializers.get(initializer)
        variable = self.add_weight(
            shape=shape, initializer=initializer, dtype="float64", name=name
        )
        self._state.append((variable, initializer))
        self._learned.append(variable)
        return variable

    def build(self, task_losses_shape):
        optimizer = self._new_optimizer()  # refused before anything is made
        super().build(task_losses_shape)
        self.optimizer = optimizer
        self.optimizer.build(self._learned)

    def finish_batch(self, trained):
        known = ops.copy(self.known)
        if self.requires_all_losses:
            known = ops.all(known)
        moves = ops.logical_and(trained, known)
        self.learn(lambda: self.objective(ops.copy(self.last_losses)), moves)

    def learn(self, objective, moves):
        """One step of the learned variables.

        Args:
            objective: Function without arguments that returns a scalar.
            moves: Boolean tensor, `[num_tasks]`: whose values move; those of
                other tasks rest.
        """
        changed = [*self._learned, *self.optimizer.variables]
        before = [ops.copy(variable) for variable in changed]
        gradients = variable_gradients(objective, self._learned)
        self.optimizer.apply(gradients, self._learned)
        for variable, value in zip(changed, before, strict=True):
            by_task = tuple(variable.shape) == (self.num_tasks,)
            moved = moves if by_task else ops.any(moves)
            variable.assign(ops.where(moved, variable, value))

    def reset_state(self):
        super().reset_state()
        if not self.built:
            return
        fresh = self._new_optimizer()
        fresh.build(self._learned)
        for variable, value in zip(
            self.optimizer.variables, fresh.variables, strict=True
        ):
            # What the user or a callback has set since stays.
            if variable is not self.optimizer._learning_rate:
                variable.assign(value)

    def get_config(self):
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
            "optimizer": self.optimizer_id,
        }
