"""Who reaches what in a functional model, and the parts to run for a task."""

import keras


class TaskGraph:
    """A functional model seen from its outputs.

    Walks the graph back from each output and keeps which operations and which
    variables it reaches; into nested functional models, too, where only the
    used outputs count, and through a layer with a `reach_of_output` method,
    only to what that names. Gives for any set of outputs the sub-model that
    computes them and nothing else, and the cut between the part that several
    groups of outputs share and the heads.

    Args:
        model: A functional Keras model.
        outputs: Dict from output name to the model's output KerasTensor.
    """

    def __init__(self, model, outputs):
        self.model = model
        self.outputs = outputs
        self._parts = {}
        self._layers = {}  # output name -> list of layers
        self._nodes = {}  # output name -> {id(node): node} at the top level
        self.variable_ids = {}  # those that its gradient reaches
        for name, tensor in outputs.items():
            run = _Walk(model, whole_operations=True)
            run.visit(tensor)
            self._nodes[name] = run.nodes
            used = _Walk(model)
            used.visit(tensor)
            self._layers[name] = used.layers()
            trained = _Walk(model, through_stop_gradient=False)
            trained.visit(tensor)
            self.variable_ids[name] = trained.variable_ids

    def layers(self, name):
        """The layers that the output depends on, nested ones included."""
        return self._layers[name]

    def part(self, names):
        """The functional sub-model that computes the named outputs."""
        names = tuple(names)
        if names not in self._parts:
            self._parts[names] = keras.Model(
                self.model.input,
                {name: self.outputs[name] for name in names},
                name=f"{self.model.name}_part_{len(self._parts)}",
            )
        return self._parts[names]

    def inputs_of(self, name):
        """The model's inputs that it takes to run for an output, in order.

        A nested model takes all of its inputs, whatever the output uses.
        """
        inputs = {id(tensor) for tensor in self.model.inputs}
        seen, waiting = {}, [self.outputs[name]]
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen:
                continue
            seen[id(tensor)] = tensor
            if id(tensor) not in inputs:
                operation, index, _ = tensor._keras_history
                waiting += operation._inbound_nodes[index].input_tensors
        return [t for t in self.model.inputs if id(t) in seen]

    def last_layers(self, tensors):
        """The last layers with trainable variables before some tensors."""
        found, waiting, seen = {}, list(tensors), set()
        while waiting:
            operation, index, _ = waiting.pop()._keras_history
            if (id(operation), index) in seen:
                continue
            seen.add((id(operation), index))
            if getattr(operation, "trainable_variables", None):
                found[id(operation)] = operation
            else:
                waiting += operation._inbound_nodes[index].input_tensors
        return list(found.values())

    def cut(self, groups):
        """Trunk and heads for groups of outputs.

        Args:
            groups: Tuple of tuples of output names.

        Returns:
            `(trunk, heads)`: a functional model from the inputs to the list of
            boundary tensors, and for each group a `Head` on them.
        """
        counts = {}
        for group in groups:
            reached = {}
            for name in group:
                reached.update(self._nodes[name])
            for key in reached:
                counts[key] = counts.get(key, 0) + 1
        shared = {key for key, count in counts.items() if count > 1}
        produced = {
            id(tensor)
            for nodes in self._nodes.values()
            for key, node in nodes.items()
            if key in shared or node.is_input
            for tensor in node.outputs
        }
        boundary = {}
        used = []
        for group in groups:
            needed = {}
            for name in group:
                output = self.outputs[name]
                if id(output) in produced:
                    needed[id(output)] = output
                for key, node in self._nodes[name].items():
                    if key in shared or node.is_input:
                        continue
                    for tensor in node.input_tensors:
                        if id(tensor) in produced:
                            needed[id(tensor)] = tensor
            boundary.update(needed)
            used.append(list(needed))
        order = list(boundary)
        trunk = keras.Model(
            self.model.input,
            [boundary[key] for key in order],
            name=f"{self.model.name}_trunk",
        )
        heads = [
            Head(
                [boundary[key] for key in keys],
                {name: self.outputs[name] for name in group},
                [order.index(key) for key in keys],
            )
            for group, keys in zip(groups, used, strict=True)
        ]
        return trunk, heads


class Head(keras.layers.Layer):
    """Runs the part of the graph from boundary tensors to some outputs.

    A `keras.Function` knows no `training` flag; inside of a layer's call the
    operations find it where Keras passes it on.
    """

    def __init__(self, inputs, outputs, positions):
        super().__init__(dtype="float32", autocast=False)
        self.positions = positions
        passed = {
            name: tensor
            for name, tensor in outputs.items()
            if any(tensor is given for given in inputs)
        }
        computed = {
            name: tensor
            for name, tensor in outputs.items()
            if name not in passed
        }
        self._passed = {
            name: next(i for i, g in enumerate(inputs) if g is tensor)
            for name, tensor in passed.items()
        }
        function = keras.Function(inputs, computed) if computed else None
        self._function = (function,)
        # Tracked, so that their `add_loss` terms are cleared and found here.
        self.parts = [
            operation
            for operation in (function.operations if function else ())
            if isinstance(operation, keras.layers.Layer)
        ]
        self._names = tuple(outputs)

    def call(self, inputs, training=None):
        function = self._function[0]
        outputs = (
            function._run_through_graph(inputs, _as_called_now)
            if function
            else {}
        )
        for name, position in self._passed.items():
            outputs[name] = inputs[position]
        return {name: outputs[name] for name in self._names}

    def compute_mask(self, inputs, previous_mask):
        """Nothing to add: the layers inside put masks on their outputs.

        Without this method Keras warns that masks are lost here.
        """
        return None


def _as_called_now(operation):
    """The operation without the `training` that the graph was built with.

    Keras records the default of a layer's `call`, often `False`, as if it had
    been passed.
    """

    def run(*args, **kwargs):
        kwargs.pop("training", None)
        return operation(*args, **kwargs)

    return run


class _Walk:
    """Collects what a tensor depends on.

    Args:
        model: A functional Keras model.
        whole_operations: Whether an operation needs all of its inputs, as it
            does to run, even if the tensor depends on some of them only.
            Defaults to `False`.
        through_stop_gradient: Defaults to `True`.
    """

    def __init__(
        self, model, whole_operations=False, through_stop_gradient=True
    ):
        self.inputs = {id(tensor) for tensor in model.inputs}
        self.whole_operations = whole_operations
        self.through_stop_gradient = through_stop_gradient
        self.nodes = {}
        self.operations = {}
        self.variable_ids = set()
        self._seen = set()

    def layers(self):
        """The layers met, but for parts that only other outputs use."""
        found = {}
        for operation in self.operations.values():
            if not isinstance(operation, keras.layers.Layer):
                continue
            for layer in operation._flatten_layers():
                if not _names_reach(operation) or self._meets(layer):
                    found[id(layer)] = layer
        return list(found.values())

    def _meets(self, layer):
        ids = {id(v) for v in layer.variables}
        return not ids or bool(ids & self.variable_ids)

    def visit(self, tensor):
        """Visits the top-level graph, iteratively: graphs may be deep."""
        pending = [tensor]
        while pending:
            tensor = pending.pop()
            if id(tensor) in self._seen:
                continue
            self._seen.add(id(tensor))
            operation, node_index, tensor_index = tensor._keras_history
            node = operation._inbound_nodes[node_index]
            self.nodes[id(node)] = node
            if id(tensor) in self.inputs or node.is_input:
                continue
            if not self.through_stop_gradient and _stops_gradient(operation):
                continue
            if is_functional(operation):
                used = self._visit_nested(operation, tensor_index)
            else:
                used = self._visit_operation(operation, tensor_index)
            flat = node.input_tensors
            pending.extend(flat if used is None else [flat[i] for i in used])

    def _visit_operation(self, operation, output_index):
        """Returns the inputs that the output uses, `None` for all."""
        self.operations[id(operation)] = operation
        used, variables = None, getattr(operation, "variables", ())
        if _names_reach(operation):
            used, variables = operation.reach_of_output(output_index)
        self.variable_ids |= {id(v) for v in variables}
        return None if self.whole_operations else used

    def _visit_nested(self, model, output_index):
        """Visits a nested functional model; returns the inputs it used."""
        inner = _Walk(model, self.whole_operations, self.through_stop_gradient)
        inner.visit(model.outputs[output_index])
        self.operations.update(inner.operations)
        self.variable_ids |= inner.variable_ids
        return [
            i
            for i, tensor in enumerate(model.inputs)
            if id(tensor) in inner._seen
        ]


def is_functional(operation):
    return isinstance(operation, keras.Function) and isinstance(
        operation, keras.Model
    )


def _names_reach(operation):
    """Whether a layer says which of its parts an output depends on."""
    return hasattr(operation, "reach_of_output")


def _stops_gradient(operation):
    return type(operation).__name__ == "StopGradient"
