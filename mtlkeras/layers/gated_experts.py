import keras
from keras import ops

from mtlkeras.layers.mean_over_positions import mean_over_positions
from mtlkeras.layers.shapes import are_equal, is_shape


class GatedExperts(keras.layers.Layer):
    """Experts, and gates that each mix some of them by softmax weights.

    Base of the layers for mixtures of experts, one output per gate:

    ```
    output_k = sum_e softmax(W_k x_k)[e] expert_e(x_e)
    ```

    A subclass makes the experts with `make_experts` and then calls `wire`.

    Args:
        tasks: Integer or list of strings. With names, the output is a dict.
        units: Integer or `None`. Units of the experts that are given as a
            number.
        activation: Activation of these experts.
        per_position: Boolean. Whether each position has weights of its own.
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, tasks, units, activation, per_position, **kwargs):
        super().__init__(**kwargs)
        check_tasks(tasks)
        self.tasks = tasks if isinstance(tasks, int) else list(tasks)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.per_position = per_position
        self.supports_masking = True
        self.task_names = None if isinstance(tasks, int) else tuple(tasks)
        self.num_tasks = tasks if isinstance(tasks, int) else len(tasks)

    def make_experts(self, argument, experts, name="expert"):
        """A list of layers from a number or a list of layers."""
        if isinstance(experts, int) and not isinstance(experts, bool):
            if experts < 1 or not self.units:
                raise ValueError(
                    f"Argument `{argument}` must be a list of layers, or a "
                    "positive number together with `units`. Received: "
                    f"{argument}={experts!r}, units={self.units!r}"
                )
            return [
                keras.layers.Dense(
                    self.units,
                    activation=self.activation,
                    name=f"{name}_{i}",
                    dtype=self.dtype_policy,
                )
                for i in range(experts)
            ]
        is_list = isinstance(experts, (list, tuple)) and experts
        if not is_list or not all(
            isinstance(expert, keras.layers.Layer) for expert in experts
        ):
            raise ValueError(
                f"Argument `{argument}` must be a number or a list of Keras "
                f"layers. Received: {argument}={experts!r}"
            )
        if self.units is not None:
            raise ValueError(
                f"With layers as `{argument}`, `units` must be left out: it is "
                f"for experts given as a number. Received: units={self.units}"
            )
        return list(experts)

    def wire(self, experts, expert_streams, gates, output_names=None):
        """Lays out who sees what.

        Args:
            experts: List of layers.
            expert_streams: List of integers, the input of each expert.
            gates: List of `(index of the input, indices of the experts)`.
            output_names: Tuple of strings, or `None` for a list of outputs.
        """
        if len({id(expert) for expert in experts}) < len(experts):
            raise ValueError(
                "Every expert must be a layer of its own. Received one layer "
                f"in several places: {[expert.name for expert in experts]}"
            )
        self.experts = experts
        self.expert_streams = tuple(expert_streams)
        self.gate_streams = tuple(stream for stream, _ in gates)
        self.gate_experts = tuple(tuple(members) for _, members in gates)
        self.output_names = output_names
        self.gates = [
            keras.layers.Dense(
                len(members),
                activation="softmax",
                use_bias=False,
                name=f"gate_{output_names[k] if output_names else k}",
                dtype=self.dtype_policy,
            )
            for k, members in enumerate(self.gate_experts)
        ]

    # -- structures -----------------------------------------------------------

    def split(self, inputs):
        """The list of input streams: tensors, or their masks."""
        if isinstance(inputs, (list, tuple, dict)):
            raise ValueError(
                f"The input of {type(self).__name__} must be one tensor. "
                f"Received: inputs={inputs}"
            )
        return [inputs]

    def split_shapes(self, input_shape):
        """The list of the shapes of the input streams."""
        if is_shape(input_shape):
            return [tuple(input_shape)] * len(self.split(None))
        return [tuple(shape) for shape in self.split(input_shape)]

    def find_positions(self, input_shape):
        """Where each stream stands among the flattened inputs."""
        count = len(self.split(None))
        if is_shape(input_shape):
            return (0,) * count
        if isinstance(input_shape, dict):
            names = keras.tree.flatten({name: name for name in input_shape})
            return tuple(names.index(name) for name in self.stream_names)
        return tuple(range(count))

    def pack(self, values):
        """One value per gate as the structure of the outputs."""
        if self.output_names is None:
            return list(values)
        return dict(zip(self.output_names, values, strict=True))

    # -- Keras ----------------------------------------------------------------

    def build(self, input_shape):
        shapes = self.split_shapes(input_shape)
        self.stream_positions = self.find_positions(input_shape)
        for expert, stream in zip(
            self.experts, self.expert_streams, strict=True
        ):
            if not expert.built:
                # Not `build`: that is for layers that define it only.
                expert(keras.KerasTensor(shapes[stream], self.compute_dtype))
        for gate, stream in zip(self.gates, self.gate_streams, strict=True):
            gate.build((None, shapes[stream][-1]))
        self.compute_output_shape(input_shape)

    def call(self, inputs, mask=None):
        streams, masks = self.split(inputs), self.split(mask)
        outputs = [
            ops.cast(expert(streams[stream]), self.compute_dtype)
            for expert, stream in zip(
                self.experts, self.expert_streams, strict=True
            )
        ]
        mixed = []
        for gate, stream, members in zip(
            self.gates, self.gate_streams, self.gate_experts, strict=True
        ):
            x = streams[stream]
            if not self.per_position:
                x = mean_over_positions(x, masks[stream])
            weights = gate(x)
            # [batch, ..., units, experts], and weights with ones in between.
            stacked = ops.stack([outputs[e] for e in members], axis=-1)
            while len(weights.shape) < len(stacked.shape):
                weights = ops.expand_dims(weights, -2)
            mixed.append(ops.sum(stacked * weights, axis=-1))
        return self.pack(mixed)

    def compute_mask(self, inputs, previous_mask):
        if previous_mask is None:
            return None
        streams, masks = self.split(inputs), self.split(previous_mask)
        found = []
        for members in self.gate_experts:
            expert = self.experts[members[0]]
            stream = self.expert_streams[members[0]]
            mask = masks[stream]
            if mask is not None and expert.supports_masking:
                mask = expert.compute_mask(streams[stream], mask)
                shape = self._output_shape(expert, streams[stream].shape)
                # An expert may do away with the positions.
                found.append(mask if len(shape) > 2 else None)
            else:
                found.append(None)
        return self.pack(found)

    def compute_output_shape(self, input_shape):
        shapes = self.split_shapes(input_shape)
        positions = self.find_positions(input_shape)
        if self.built and positions != self.stream_positions:
            raise ValueError(
                f"{type(self).__name__} was built for another structure of "
                "inputs and must be called on that: which task depends on what "
                f"follows from it. Received inputs of shapes {input_shape}. "
                "Use a layer of its own."
            )
        outputs = [
            self._output_shape(expert, shapes[stream])
            for expert, stream in zip(
                self.experts, self.expert_streams, strict=True
            )
        ]
        if not are_equal(outputs):
            raise ValueError(
                "All experts must give outputs of one shape. Received experts "
                f"with outputs of shapes {outputs}"
            )
        for stream in self.gate_streams if self.per_position else ():
            if shapes[stream][1:-1] != outputs[0][1:-1]:
                raise ValueError(
                    "With `per_position=True` experts must keep the positions "
                    f"of their input. Received: inputs of shape "
                    f"{shapes[stream]}, outputs of shape {outputs[0]}. Use "
                    "`per_position=False`."
                )
        return self.pack([outputs[members[0]] for members in self.gate_experts])

    def _output_shape(self, expert, shape):
        spec = keras.KerasTensor(shape, self.compute_dtype)
        return tuple(expert.compute_output_spec(spec).shape)

    def reach_of_output(self, position):
        """What an output depends on, for `MultiTaskModel`.

        Gates and experts that only one task uses are that task's own
        variables, though they live in one layer with those of the others.

        Args:
            position: Integer, index among the flattened outputs.

        Returns:
            Tuple of the indices among the flattened inputs, and the variables.
        """
        order = keras.tree.flatten(self.pack(range(len(self.gates))))
        k = order[position]
        members = self.gate_experts[k]
        streams = {self.gate_streams[k]}
        streams |= {self.expert_streams[e] for e in members}
        variables = list(self.gates[k].variables)
        for e in members:
            variables += self.experts[e].variables
        return sorted({self.stream_positions[s] for s in streams}), variables

    def get_config(self):
        return {
            **super().get_config(),
            "tasks": self.tasks,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "per_position": self.per_position,
        }

    def config_of_experts(self, experts):
        """The number or the serialized layers that make these experts."""
        if self.units is not None:
            return len(experts)
        configs = [keras.saving.serialize_keras_object(e) for e in experts]
        for config in configs:
            # This layer builds them, also those without a `build` method.
            config.pop("build_config", None)
        return configs


def check_tasks(tasks):
    is_number = isinstance(tasks, int) and not isinstance(tasks, bool)
    is_names = isinstance(tasks, (list, tuple)) and all(
        isinstance(name, str) for name in tasks
    )
    if (is_number and tasks > 0) or (
        is_names and tasks and len(set(tasks)) == len(tasks)
    ):
        return
    raise ValueError(
        "Argument `tasks` must be a positive number or a list of different "
        f"names. Received: tasks={tasks!r}"
    )
