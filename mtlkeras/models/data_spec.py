"""What can be told of the data for `fit` without consuming any."""

import keras


def is_empty(x):
    """Whether the data are known to hold no sample."""
    if hasattr(x, "cardinality") and hasattr(x, "element_spec"):
        return int(x.cardinality()) == 0
    leaves = [] if x is None else keras.tree.flatten(x)
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    return any(
        shape is not None and tuple(shape)[:1] == (0,) for shape in shapes
    )


def input_spec_of(x):
    """Structure of objects with `shape` and `dtype` for the model's inputs.

    Returns:
        `None` for data that cannot be looked at without taking some, such as
        generators.
    """
    if hasattr(x, "element_spec"):
        spec = x.element_spec
        return spec[0] if isinstance(spec, tuple) else spec
    if isinstance(x, keras.utils.PyDataset):
        batch = x[0]
        return batch[0] if isinstance(batch, tuple) else batch
    leaves = [] if x is None else keras.tree.flatten(x)
    if leaves and all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves
    ):
        return x
    return None


def input_spec_of_built(model):
    """Input KerasTensors of a built model, from what Keras saved of them.

    Returns:
        `None` where the shapes were not recorded.
    """
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {key: _as_tensor(value) for key, value in shape.items()}
    if shape and isinstance(shape[0], (list, tuple)):
        return [_as_tensor(value) for value in shape]
    return _as_tensor(shape)


def _as_tensor(shape):
    return keras.KerasTensor(tuple(shape), keras.backend.floatx())
