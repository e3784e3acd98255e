import contextlib
import difflib

import keras


class Record:
    """Outputs of some layers, each called once.

    Args:
        names: Names of the layers.
        replace: Function from an output tensor to the one that the model goes
            on with.
    """

    def __init__(self, names, replace):
        self._waiting = set(names)
        self._replace = replace

    def add(self, name, outputs):
        if name not in self._waiting:
            raise ValueError(
                f"The layer '{name}' in `feature_layers` is called again: "
                "where the shared part ends must be clear. Name the last "
                "layers that the tasks share."
            )
        self._waiting.discard(name)
        return keras.tree.map_structure(self._replace, outputs)

    def check(self):
        if self._waiting:
            raise ValueError(
                "Every layer in `feature_layers` must be called by the model. "
                f"Not called: {sorted(self._waiting)}"
            )


@contextlib.contextmanager
def recorded_outputs(model, names, replace):
    """Replaces the outputs of the named layers while the model is called."""
    record = Record(names, replace)
    layers = [find_layer(model, name) for name in names]
    for layer in layers:
        layer.__dict__["call"] = _recording(layer.call, layer.name, record)
    try:
        yield record
    finally:
        for layer in layers:
            del layer.__dict__["call"]


def find_layer(model, name):
    layers = {layer.name: layer for layer in model._flatten_layers()}
    layers.pop(model.name, None)
    if name not in layers:
        near = difflib.get_close_matches(name, layers, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            "Argument `feature_layers` must name layers of the model, out of "
            f"{sorted(layers)}. Received: {name!r}.{hint}"
        )
    return layers[name]


def _recording(call, name, record):
    def recording(*args, **kwargs):
        return record.add(name, call(*args, **kwargs))

    return recording
