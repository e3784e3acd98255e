import keras

from mtlkeras.layers.gated_experts import GatedExperts


@keras.saving.register_keras_serializable("mtlkeras")
class CustomizedGateControl(GatedExperts):
    """Shared experts and experts of each task, mixed by gates (CGC, PLE).

    ```
    output_k = sum_e softmax(W_k x_k)[e] expert_e    own and shared experts
    shared   = sum_e softmax(W_s x_s)[e] expert_e    all experts
    ```

    A task's gate chooses among its own experts and the shared ones, and never
    sees those of other tasks. Choose it over `MixtureOfExperts` when one task
    gains at the cost of another: own experts keep what would disturb. Stacked,
    it is progressive layered extraction (PLE): all but the last layer with
    `shared_output=True`, each called on the output of the one before.

    Args:
        tasks: Integer or list of strings. With names, the output is a dict
            from name to tensor, else a list.
        task_experts: Integer, the number of experts of each task as dense
            layers of `units` units, or a list with a list of Keras layers for
            each task, or a dict of such lists by task name.
        shared_experts: Integer or list of Keras layers, likewise.
        units: Integer, with numbers of experts. Defaults to `None`.
        activation: Activation of the dense layers. Defaults to `"relu"`.
        shared_output: Boolean. Whether there is an output for the shared
            experts of a next layer: `"shared"` in a dict, or the last in a
            list. Defaults to `False`.
        per_position: Boolean, for inputs of rank 3 or more. `True`: every
            position has gate weights of its own. `False`: one set per example,
            from the mean over the positions that are not masked. Defaults to
            `False`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        `(batch_size, ..., features)`: one tensor for all, or the structure
        that a layer with `shared_output=True` gives.

    Output shape:
        For each task that of the experts.

    Raises:
        ValueError: If experts give different shapes, numbers of experts come
            without `units`, or the input has other streams than the tasks'
            and the shared one.

    Example:

    >>> inputs = keras.Input((8,))
    >>> x = CustomizedGateControl(
    ...     ["click", "like"], 2, 1, units=16, shared_output=True
    ... )(inputs)
    >>> sorted(x)
    ['click', 'like', 'shared']
    >>> x = CustomizedGateControl(["click", "like"], 2, 1, units=8)(x)
    >>> sorted(x)
    ['click', 'like']
    >>> tuple(x["click"].shape)
    (None, 8)

    Departures: gates have no bias, as in the paper's formula. The paper's
    inputs are vectors: the gates for other inputs are ours.

    References:
        - [Tang et al., 2020](https://doi.org/10.1145/3383313.3412236)
    """

    def __init__(
        self,
        tasks,
        task_experts,
        shared_experts,
        units=None,
        activation="relu",
        shared_output=False,
        per_position=False,
        **kwargs,
    ):
        super().__init__(tasks, units, activation, per_position, **kwargs)
        if self.task_names and "shared" in self.task_names:
            raise ValueError(
                "Argument `tasks` must not hold 'shared', the name of the "
                f"shared stream. Received: tasks={tasks}. Rename the task."
            )
        self.shared_output = shared_output
        names = self.task_names
        self.stream_names = None if names is None else (*names, "shared")
        shared = self.make_experts(
            "shared_experts", shared_experts, "shared_expert"
        )
        self.num_shared = len(shared)
        experts, streams = shared, [self.num_tasks] * len(shared)
        gates = []
        for k, own in enumerate(self._experts_by_task(task_experts)):
            label = f"{names[k] if names else k}_expert"
            own = self.make_experts("task_experts", own, label)
            members = range(len(experts), len(experts) + len(own))
            gates.append((k, [*members, *range(len(shared))]))
            experts = experts + own
            streams = streams + [k] * len(own)
        if shared_output:
            gates.append((self.num_tasks, range(len(experts))))
        outputs = self.stream_names if shared_output else names
        self.wire(experts, streams, gates, outputs)

    def _experts_by_task(self, given):
        """A number or a list of layers for each task."""
        if isinstance(given, int):
            return [given] * self.num_tasks
        if isinstance(given, dict) and set(given) == set(self.task_names or ()):
            return [given[name] for name in self.task_names]
        if isinstance(given, (list, tuple)) and len(given) == self.num_tasks:
            return list(given)
        raise ValueError(
            "Argument `task_experts` must be a number, or hold a list of "
            f"layers for each of the tasks {self.tasks}. Received: "
            f"task_experts={given!r}"
        )

    @property
    def shared_experts(self):
        """The experts that all tasks share, a list of layers."""
        return self.experts[: self.num_shared]

    @property
    def task_experts(self):
        """The experts of each task, a list of lists of layers."""
        return [
            [self.experts[e] for e in members if e >= self.num_shared]
            for members in self.gate_experts[: self.num_tasks]
        ]

    def split(self, inputs):
        count = self.num_tasks + 1
        if isinstance(inputs, dict) and set(inputs) == set(
            self.stream_names or ()
        ):
            return [inputs[name] for name in self.stream_names]
        if isinstance(inputs, (list, tuple)):
            if len(inputs) == count:
                return list(inputs)
        elif not isinstance(inputs, dict):
            return [inputs] * count
        found = sorted(inputs) if isinstance(inputs, dict) else len(inputs)
        wanted = self.stream_names or f"{count} tensors, the shared one last"
        raise ValueError(
            "The input must be one tensor or what a layer with "
            f"`shared_output=True` gives: {wanted}. Received: {found}"
        )

    def get_config(self):
        config = {
            **super().get_config(),
            "shared_experts": self.config_of_experts(self.shared_experts),
            "shared_output": self.shared_output,
        }
        own = [self.config_of_experts(experts) for experts in self.task_experts]
        config["task_experts"] = own if self.units is None else own[0]
        return config

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if not isinstance(config["shared_experts"], int):
            revive = keras.saving.deserialize_keras_object
            config["shared_experts"] = [
                revive(expert) for expert in config["shared_experts"]
            ]
            config["task_experts"] = [
                [revive(expert) for expert in experts]
                for experts in config["task_experts"]
            ]
        return cls(**config)
