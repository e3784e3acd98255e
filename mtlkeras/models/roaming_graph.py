"""Puts masks of units into the shared part of an existing model."""

import keras

from mtlkeras.layers.roaming_mask import RoamingMask, draw_seed
from mtlkeras.layers.task_batch_normalization import TaskBatchNormalization
from mtlkeras.models.task_graph import TaskGraph, is_functional

CONVOLUTIONS = tuple(
    getattr(keras.layers, f"{kind}{n}D{suffix}")
    for kind, dimensions, suffixes in (
        ("Conv", (1, 2, 3), ("", "Transpose")),
        ("DepthwiseConv", (1, 2), ("",)),
        ("SeparableConv", (1, 2), ("",)),
    )
    for n in dimensions
    for suffix in suffixes
)


class RoamingGraph:
    """A functional model with masks, and a normalization that fits them.

    Behind every convolution (and dense layer, if wanted) that at least two
    outputs use comes a `RoamingMask`: behind its normalization, where it has
    one of its own. `BatchNormalization` becomes `TaskBatchNormalization` with
    the same values. All other layers are those of the model.

    Args:
        model: A functional Keras model with several outputs.
        sharing_ratio: Float, as for `RoamingMask`.
        dense: Whether to mask dense layers, too.
        batch_statistics: As for `TaskBatchNormalization`.
        seed: Non-negative integer or `None`.

    Attributes:
        inputs, outputs: Of the new graph, in the model's structure.
    """

    def __init__(self, model, sharing_ratio, dense, batch_statistics, seed):
        if not isinstance(model, keras.Model) or not is_functional(model):
            raise ValueError(
                "`MultiTaskModel.with_roaming` needs a functional Keras model, "
                f"whose graph of layers is known. Received: model={model!r}"
            )
        outputs = model.output
        if not isinstance(outputs, dict):
            outputs = dict(enumerate(keras.tree.flatten(outputs)))
        if len(outputs) < 2:
            raise ValueError(
                "`MultiTaskModel.with_roaming` needs a model with at least two "
                f"outputs, its tasks. Received: {len(outputs)} output"
            )
        self.num_tasks = len(outputs)
        self.sharing_ratio = sharing_ratio
        self.batch_statistics = batch_statistics
        self.seed = draw_seed() if seed is None else seed
        self.kinds = CONVOLUTIONS + ((keras.layers.Dense,) if dense else ())
        graph = TaskGraph(model, outputs)
        users = {}
        for name in outputs:
            for layer in graph.layers(name):
                users.setdefault(id(layer), set()).add(name)
        self.shared = {key for key, names in users.items() if len(names) > 1}
        self.count = 0  # masks so far
        new = self._masked(model)
        if not self.count:
            raise ValueError(
                "`MultiTaskModel.with_roaming` found nothing to mask: the "
                "model has no convolution that several outputs share. Use "
                "`dense=True` to mask dense layers."
            )
        self.inputs, self.outputs = new.input, new.output

    def _masked(self, model):
        """The model anew, with the layers of the old one."""
        targets = self._targets(model)
        replaced = {}

        def clone(layer):
            if id(layer) not in replaced:
                replaced[id(layer)] = self._replacement(layer)
            return replaced[id(layer)]

        def call(layer, *args, **kwargs):
            output = layer(*args, **kwargs)
            if id(layer) not in masked:
                return output
            self.count += 1
            mask = RoamingMask(
                self.num_tasks,
                self.sharing_ratio,
                axis=masked[id(layer)],
                seed=self.seed + self.count,
                name=f"roaming_mask_{self.count}",
            )
            return mask(output)

        for layer in model._flatten_layers(include_self=False, recursive=False):
            clone(layer)
        masked = {
            id(replaced[id(layer)]): axis
            for layer, axis in targets
            if id(layer) in replaced
        }
        return keras.models.clone_model(
            model, clone_function=clone, call_function=call
        )

    def _replacement(self, layer):
        if isinstance(layer, keras.Model) and is_functional(layer):
            used = {id(inner) for inner in layer._flatten_layers()}
            return self._masked(layer) if used & self.shared else layer
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        if is_norm and id(layer) in self.shared:
            return self._normalization(layer)
        return layer

    def _targets(self, model):
        """`(layer, axis of its units)` for every layer to be masked."""
        found = {}
        # A layer may be part of other models, too.
        nodes = {
            id(node)
            for at_depth in model._nodes_by_depth.values()
            for node in at_depth
        }
        for layer in model._flatten_layers(include_self=False, recursive=False):
            if not isinstance(layer, self.kinds):
                continue
            if id(layer) not in self.shared:
                continue
            target, axis = layer, units_axis(layer)
            following = [
                node.operation
                for node in layer._outbound_nodes
                if id(node) in nodes
            ]
            if len(following) == 1 and isinstance(
                following[0], keras.layers.BatchNormalization
            ):
                target = following[0]
            found[id(target)] = (target, axis)
        return list(found.values())

    def _normalization(self, layer):
        special = (
            layer.gamma_regularizer,
            layer.beta_regularizer,
            layer.gamma_constraint,
            layer.beta_constraint,
            getattr(layer, "renorm", False) or None,
        )
        if any(argument is not None for argument in special):
            raise ValueError(
                f"The layer '{layer.name}' has a regularizer or constraint, or "
                "batch renormalization, which `TaskBatchNormalization` does "
                "not know. Build the model with `TaskBatchNormalization` and "
                "`RoamingMask` yourself, or take these out."
            )
        new = TaskBatchNormalization(
            self.num_tasks,
            layer.axis,
            layer.momentum,
            layer.epsilon,
            layer.center,
            layer.scale,
            self.batch_statistics,
            name=layer.name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )
        size = layer.moving_mean.shape[0]
        shape = [None] * layer.input_spec.ndim
        shape[layer.axis] = size
        new.build(tuple(shape))
        new.built = True
        if layer.scale:
            new.gamma.assign(layer.gamma)
        if layer.center:
            new.beta.assign(layer.beta)
        for name in ("moving_mean", "moving_variance"):
            rows = keras.ops.tile(
                keras.ops.convert_to_tensor(getattr(layer, name))[None],
                (self.num_tasks, 1),
            )
            getattr(new, name).assign(rows)
        return new


def units_axis(layer):
    """Where a layer's outputs have their units."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    return -1
