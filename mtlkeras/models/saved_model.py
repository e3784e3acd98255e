"""A SavedModel with a signature for every output of a model."""

import keras

from mtlkeras.layers.running_task import running_task
from mtlkeras.models.data_spec import input_spec_of_built
from mtlkeras.models.task_graph import is_functional

# Endpoints become attributes of the object that is saved.
TAKEN = (
    "serve",
    "serving_default",
    "signatures",
    "variables",
    "trainable_variables",
    "non_trainable_variables",
)


def export_saved_model(model, path, verbose, input_signature, **kwargs):
    """Writes what `MultiTaskModel.export` promises.

    Args:
        model: A built `MultiTaskModel`.
        path: Folder to write to.
        verbose: Whether to print the endpoints; `None` for `True`, as Keras.
        input_signature: As in `keras.Model.export`.
    """
    if is_functional(model):
        signature, named, endpoints = _of_graph(model, input_signature)
    else:
        signature, named, endpoints = _of_call(model, input_signature)
    _check_names(endpoints)
    archive = keras.export.ExportArchive()
    # Lookup tables are found through the model; its parts share them.
    archive.track(model)
    archive.add_endpoint("serve", model.__call__, signature, **kwargs)
    if named is not None:
        archive.add_endpoint("serving_default", named, signature, **kwargs)
    for name, (function, needed) in endpoints.items():
        archive.add_endpoint(name, function, needed, **kwargs)
    archive.write_out(path, verbose=True if verbose is None else verbose)


def _of_graph(model, given):
    """Endpoints of a functional model: each runs what it needs.

    Returns:
        Tuple of the input signature; of the function for `serving_default`
        unless `serve` names its outputs; and of a dict from output name to
        function and input signature.
    """
    graph = model._graph()
    leaves = model.inputs if given is None else keras.tree.flatten(given)
    if len(leaves) != len(model.inputs):
        raise ValueError(
            "Argument `input_signature` must have one entry for each of the "
            f"model's inputs {[t.name for t in model.inputs]}. Received: "
            f"input_signature={given!r}"
        )
    specs = {
        id(tensor): _with_name(spec, tensor.name)
        for spec, tensor in zip(leaves, model.inputs, strict=True)
    }

    def signature_for(inputs):
        return [keras.tree.map_structure(lambda t: specs[id(t)], inputs)]

    def endpoint(name):
        inputs = graph.inputs_of(name)
        if len(inputs) == len(model.inputs):
            inputs = model.input
        elif len(inputs) == 1:
            (inputs,) = inputs
        part = keras.Model(inputs, {name: graph.outputs[name]})
        task = list(graph.outputs).index(name)

        def run(*arguments):
            with running_task(task):
                return part(*arguments)

        return run, signature_for(inputs)

    endpoints = {name: endpoint(name) for name in graph.outputs}
    signature = signature_for(model.input)
    named = None
    if not isinstance(model.output, dict):

        def named(*args):
            found = keras.tree.flatten(model(*args))
            return dict(zip(graph.outputs, found, strict=True))

    return signature, named, endpoints


def _of_call(model, given):
    """Endpoints of a subclassed model: each runs all of `call`."""
    if given is None:
        specs = model._multi_task.input_specs
        if specs is None:  # compiled again, or loaded
            specs = input_spec_of_built(model)
        if specs is None:
            raise ValueError(
                "The inputs of this model are not known. Pass them to "
                "`export(path, input_signature=[...])`, one "
                "`keras.InputSpec(shape=(None, ...), dtype=...)` for each "
                "argument of `call`."
            )
        given = [_as_specs(specs)]
    signature = list(given) if isinstance(given, (list, tuple)) else [given]
    structure = model._multi_task.structure
    if structure is not None:
        names = structure.outputs
    else:
        tensors = keras.tree.map_structure(
            lambda s: keras.KerasTensor(s.shape, s.dtype), signature
        )
        names = model._as_dict(model(*tensors))

    def endpoint(name):
        return (lambda *args: {name: model(*args)[name]}), signature

    return signature, None, {name: endpoint(name) for name in names}


def _with_name(spec, name):
    """A spec that has the name of its input, unless it has one."""
    if getattr(spec, "name", None):
        return spec
    shape = tuple(spec.shape)
    if keras.ops.is_tensor(spec):  # an example of a batch
        shape = (None, *shape[1:])
    dtype = keras.backend.standardize_dtype(spec.dtype)
    return keras.InputSpec(shape=shape, dtype=dtype, name=name)


def _as_specs(tensors, name=None):
    """Specs for data like these; `fit` casts floats as `floatx` says."""
    if isinstance(tensors, dict):
        return {key: _as_specs(value, key) for key, value in tensors.items()}
    if isinstance(tensors, (list, tuple)):
        return [_as_specs(value) for value in tensors]
    dtype = keras.backend.standardize_dtype(tensors.dtype)
    if "float" in dtype:
        dtype = keras.backend.floatx()
    shape = (None, *tensors.shape[1:])
    return keras.InputSpec(shape=shape, dtype=dtype, name=name)


def _check_names(names):
    refused = [n for n in names if n in TAKEN or n.startswith("_") or not n]
    if refused:
        raise ValueError(
            "The names of the outputs become signatures of the SavedModel, so "
            f"they must not be empty, start with '_', or be one of "
            f"{list(TAKEN)}. Received outputs named {refused}. Give them "
            "another name with `mtlkeras.MultiTaskModel(model.input, "
            "{'name': output, ...})`, which keeps layers and weights."
        )
