import keras

from mtlkeras.models.task_graph import TaskGraph, is_functional
from mtlkeras.models.update_plan import make_plan


class MultiTaskState:
    """What a `MultiTaskModel` knows beyond a `keras.Model`.

    A plain object, so that Keras tracks none of the variables, layers and
    models in it a second time: all of them are the model's or the optimizer's.
    """

    def __init__(self):
        self.tasks = None
        self.strategy = None
        self.aggregator = None
        self.balancer = None
        self.on_nonfinite = "skip"
        self.user_optimizer = None
        self.compile_arguments = {}
        self.flags = {}
        self.weights_warned = False
        self.reset_structure()

    def reset_structure(self):
        """Forgets what depends on the model's outputs and variables."""
        self.graph = None
        self.plan = None
        self.outputs = None
        self.reach = None
        self.layer_tasks = None
        self.counters = {}
        self._cuts = {}

    @property
    def is_bound(self):
        return self.plan is not None

    def analyse(self, model, outputs, find_connections):
        """Finds which variables and layers every task reaches.

        Args:
            model: The model.
            outputs: Dict from output name to KerasTensor.
            find_connections: Function from task names to a dict of sets of
                variable indices, for models whose graph is not known.
        """
        names = self.tasks.names
        self.outputs = outputs
        variables = model.trainable_variables
        if is_functional(model):
            self.graph = TaskGraph(model, outputs)
            self.reach = {
                name: {
                    i
                    for i, v in enumerate(variables)
                    if id(v) in self.graph.variable_ids[name]
                }
                for name in names
            }
            self.layer_tasks = self._layers_of_graph(names)
        else:
            self.graph = None
            self.reach = find_connections(names)
            self.layer_tasks = self._layers_by_variables(model, variables)

    def _layers_of_graph(self, names):
        layers = {}
        for name in names:
            for operation in self.graph.operations[name]:
                if not isinstance(operation, keras.layers.Layer):
                    continue
                for layer in operation._flatten_layers():
                    entry = layers.setdefault(id(layer), (layer, []))
                    if name not in entry[1]:
                        entry[1].append(name)
        return list(layers.values())

    def _layers_by_variables(self, model, variables):
        """For opaque models: a layer is of the tasks its variables serve."""
        names = self.tasks.names
        index = {id(v): i for i, v in enumerate(variables)}
        found = []
        for layer in model._flatten_layers():
            own = [index[id(v)] for v in layer.trainable_variables]
            users = [n for n in names if any(i in self.reach[n] for i in own)]
            found.append((layer, users or list(names)))
        return found

    def make_plan(self, model):
        """Lays the strategy over the model."""
        self.strategy.bind(self.tasks.names)
        self.plan = make_plan(
            self.strategy,
            self.tasks.names,
            model.trainable_variables,
            self.reach,
            self.layer_tasks,
        )
        self._cuts = {}

    def cut_for(self, groups):
        """Trunk and heads of the groups; `None` for opaque models."""
        if self.graph is None:
            return None
        if groups not in self._cuts:
            self._cuts[groups] = self.graph.cut(groups)
        return self._cuts[groups]

    def output_shapes(self, model, x):
        """Dict from task to `(shape, dtype)` of its output for inputs `x`."""
        outputs = self.outputs
        if any(None in o.shape[1:] for o in outputs.values()):
            specs = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype), x
            )
            found = model.compute_output_spec(specs)
            outputs = self.tasks.split(found, "outputs")
        unknown = [
            name for name in self.tasks.names if None in outputs[name].shape[1:]
        ]
        if unknown:
            raise ValueError(
                f"The strategy {self.strategy!r} needs outputs whose shapes "
                "are known but for the batch size. The shapes of the tasks "
                f"{unknown} are "
                f"{[tuple(outputs[n].shape) for n in unknown]}. Give the data "
                "static shapes, e.g. with `dataset.map(ensure_shape)`."
            )
        return {
            name: (outputs[name].shape, outputs[name].dtype)
            for name in self.tasks.names
        }
