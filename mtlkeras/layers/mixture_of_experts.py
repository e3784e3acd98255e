import keras

from mtlkeras.layers.gated_experts import GatedExperts


@keras.saving.register_keras_serializable("mtlkeras")
class MixtureOfExperts(GatedExperts):
    """Experts that all tasks share, mixed by a gate per task (MMoE).

    ```
    output_k = sum_e softmax(W_k x)[e] expert_e(x)
    ```

    Each task decides per example how much of each expert it takes. Choose it
    in place of the last layer of a shared trunk when tasks are related, but
    you do not know how closely: tasks that fit together end up with similar
    gates, others part.

    Args:
        tasks: Integer or list of strings. With names, the output is a dict
            from name to tensor, else a list.
        experts: Integer, for as many dense layers of `units` units, or a list
            of Keras layers or models whose outputs have one shape; at least
            two.
        units: Integer, with a number as `experts`. Defaults to `None`.
        activation: Activation of these dense layers. Defaults to `"relu"`, as
            in the paper.
        per_position: Boolean, for inputs of rank 3 or more. `True`: every
            position (time step, pixel) has gate weights of its own. `False`:
            one set per example, from the mean over the positions that are not
            masked. Defaults to `False`.
        **kwargs: As for `keras.layers.Layer`.

    Input shape:
        `(batch_size, ..., features)`

    Output shape:
        For each task that of the experts, `(batch_size, units)` for inputs of
        rank 2.

    Raises:
        ValueError: If experts give different shapes, there are fewer than
            two, or a number of experts comes without `units`.

    Example:

    >>> inputs = keras.Input((8,))
    >>> mixed = MixtureOfExperts(["click", "like"], experts=4, units=16)(inputs)
    >>> model = mtlkeras.MultiTaskModel(
    ...     inputs,
    ...     {task: keras.layers.Dense(1)(mixed[task]) for task in mixed},
    ... )
    >>> len(model.shared_variables)  # kernels and biases of the experts
    8
    >>> [v.path.split("/")[-2] for v in model.task_variables("click")][:1]
    ['gate_click']

    Departures: gates have no bias, as in the paper's formula; other libraries
    add one. The paper's inputs are vectors: the gates for other inputs are
    ours.

    References:
        - [Ma et al., 2018](https://doi.org/10.1145/3219819.3220007)
    """

    def __init__(
        self,
        tasks,
        experts,
        units=None,
        activation="relu",
        per_position=False,
        **kwargs,
    ):
        super().__init__(tasks, units, activation, per_position, **kwargs)
        experts = self.make_experts("experts", experts)
        if len(experts) < 2:
            raise ValueError(
                "Argument `experts` must give at least two experts: with one, "
                "the layer would be just that expert, and every gate 1. "
                "Received one."
            )
        everyone = range(len(experts))
        self.wire(
            experts,
            expert_streams=[0] * len(experts),
            gates=[(0, everyone)] * self.num_tasks,
            output_names=self.task_names,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "experts": self.config_of_experts(self.experts),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if not isinstance(config["experts"], int):
            config["experts"] = [
                keras.saving.deserialize_keras_object(expert)
                for expert in config["experts"]
            ]
        return cls(**config)
