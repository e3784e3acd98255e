import keras

from mtlkeras.models.task_graph import TaskGraph, is_functional


def depends_on_task(model):
    """Whether a layer of the model does something else for each task."""
    return any(
        getattr(layer, "depends_on_task", False)
        for layer in model._flatten_layers(include_self=False)
    )


class TaskStructure:
    """Which variables and layers of a model every task reaches.

    For functional models it is read off the graph of layers; for others the
    trainer finds by which gradients exist.

    Args:
        model: The model.
        tasks: Its `TaskSet`, bound to the outputs.
        outputs: Structure of output KerasTensors.
        find_connections: Function that returns a dict from task to the set of
            indices of the trainable variables that its output reaches, for
            models whose graph is not known.
    """

    def __init__(self, model, tasks, outputs, find_connections):
        self.tasks = tasks
        self.outputs = tasks.split(outputs, "outputs")
        self.variables = model.trainable_variables
        self._cuts = {}
        self.depends_on_task = depends_on_task(model)
        if is_functional(model):
            self.graph = TaskGraph(model, self.outputs)
            self.reach = {
                name: {
                    i
                    for i, v in enumerate(self.variables)
                    if id(v) in self.graph.variable_ids[name]
                }
                for name in tasks.names
            }
            self.layer_tasks = self._layers_of_graph()
        else:
            self.graph = None
            self.reach = find_connections()
            self.layer_tasks = self._layers_by_variables(model)

    def users(self, index):
        """Tuple of the tasks that reach the variable of this index."""
        return tuple(n for n in self.tasks.names if index in self.reach[n])

    def indices(self, condition):
        """Indices of the variables whose users fulfil a condition."""
        every = range(len(self.variables))
        return tuple(i for i in every if condition(self.users(i)))

    def shared_variables(self):
        """Trainable variables that at least two tasks reach."""
        found = self.indices(lambda users: len(users) > 1)
        return [self.variables[i] for i in found]

    def task_variables(self, name):
        """Trainable variables that only this task reaches."""
        found = self.indices(lambda users: users == (name,))
        return [self.variables[i] for i in found]

    def own_variables(self, name):
        """All variables of a task's own, those of its layers' state, too."""
        found = {id(v): v for v in self.task_variables(name)}
        for layer, users in self.layer_tasks:
            if users == (name,):
                found.update({id(v): v for v in layer.non_trainable_variables})
        return list(found.values())

    def _layers_of_graph(self):
        """List of `(layer, tuple of tasks)`."""
        layers = {}
        for name in self.tasks.names:
            for layer in self.graph.layers(name):
                layers.setdefault(id(layer), (layer, []))[1].append(name)
        return [(layer, tuple(users)) for layer, users in layers.values()]

    def _layers_by_variables(self, model):
        """For opaque models: a layer is of the tasks its variables serve."""
        index = {id(v): i for i, v in enumerate(self.variables)}
        found = []
        for layer in model._flatten_layers():
            own = [index[id(v)] for v in layer.trainable_variables]
            users = tuple(
                name
                for name in self.tasks.names
                if any(i in self.reach[name] for i in own)
            )
            found.append((layer, users or self.tasks.names))
        return found

    def cut_for(self, groups):
        """Trunk and heads of the groups; `None` for opaque models."""
        if self.graph is None:
            return None
        if groups not in self._cuts:
            self._cuts[groups] = self.graph.cut(groups)
        return self._cuts[groups]

    def has_boundary(self, group):
        """Whether the trunk computes a tensor for the tasks of a group."""
        trunk, _ = self.cut_for(tuple((name,) for name in group))
        return any(
            not isinstance(t._keras_history.operation, keras.layers.InputLayer)
            for t in trunk.outputs
        )

    def last_shared_variables(self, layers=None):
        """Trainable variables of the last layers that tasks share.

        Args:
            layers: Names of these layers. Defaults to `None`: from the graph.
        """
        if layers is None:
            trunk, _ = self.cut_for(tuple((n,) for n in self.tasks.names))
            found = self.graph.last_layers(trunk.outputs)
        else:
            found = [
                layer for layer, _ in self.layer_tasks if layer.name in layers
            ]
        return [v for layer in found for v in layer.trainable_variables]

    def output_shapes(self, model, x):
        """Dict from task to `(shape, dtype)` of its output for inputs `x`.

        Raises:
            ValueError: If more than the batch size is unknown.
        """
        names, outputs = self.tasks.names, self.outputs
        if any(None in outputs[name].shape[1:] for name in names):
            specs = keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape, t.dtype), x
            )
            found = model.compute_output_spec(specs)
            outputs = self.tasks.split(found, "outputs")
        shapes = {
            name: (tuple(outputs[name].shape), outputs[name].dtype)
            for name in names
        }
        unknown = {n: s for n, (s, _) in shapes.items() if None in s[1:]}
        if unknown:
            raise ValueError(
                "A strategy that chooses groups inside the graph needs outputs "
                "whose shapes are known but for the batch size. Received "
                f"outputs of shapes {unknown}. Give the data static shapes, "
                "e.g. with `dataset.map` and `tf.ensure_shape`."
            )
        return shapes
