class MultiTaskState:
    """What a compiled `MultiTaskModel` knows beyond a `keras.Model`.

    A plain object, so that Keras tracks none of the variables, layers and
    optimizers in it a second time: all of them are the model's or the
    optimizer's.

    Attributes:
        tasks: The `TaskSet`, or `None` before `compile`.
        arguments: What the user gave to `compile`, for saving.
        user_optimizer: The optimizer that the user gave, with loss scaling.
        on_nonfinite: `"skip"` or `"raise"`.
        structure: The `TaskStructure`, once the outputs are known.
        update: The `UpdateInForce`.
        counters: The `BatchCounters`, once the tasks are known.
        frozen: The `FrozenTasks`, once the tasks are known.
        freezes: Whether the training step heeds them.
        measurements: The `TaskMeasurements`, while a `TaskMonitor` watches.
        class_weights: Dict from task to its class weights, of the running
            `fit`.
        flags: Dict that tells metrics what of a prediction counts.
        input_specs: Structure of input KerasTensors of a subclassed model,
            once it has seen data.
        graph: The `TaskGraph` of a functional model that is not compiled.
        predicted: The outputs that `predict` is to give, `None` for all.
        predict_functions: Dict from these to Keras's traced function.
    """

    def __init__(
        self,
        tasks=None,
        arguments=None,
        user_optimizer=None,
        on_nonfinite="skip",
    ):
        self.tasks = tasks
        self.arguments = arguments
        self.user_optimizer = user_optimizer
        self.on_nonfinite = on_nonfinite
        self.structure = None
        self.update = None
        self.counters = None
        self.frozen = None
        self.freezes = False
        self.measurements = None
        self.class_weights = {}
        self.flags = {}
        self.input_specs = None
        self.graph = None
        self.predicted = None
        self.predict_functions = {}
        self.warned_of_weights = False

    @property
    def strategy(self):
        return self.update.strategy

    @property
    def plan(self):
        return None if self.update is None else self.update.plan
