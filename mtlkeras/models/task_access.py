import contextlib
import os
import re

import keras

from mtlkeras.models.saved_model import export_saved_model
from mtlkeras.models.task_graph import is_functional
from mtlkeras.models.task_structure import depends_on_task
from mtlkeras.models.task_summary import print_summary
from mtlkeras.models.told_task import told_task


class TaskAccess:
    """The methods of a `MultiTaskModel` around single tasks, beside training.

    Here every output counts, one without a loss, too: what a model gives does
    not depend on how it was compiled.
    """

    def predict(
        self,
        x,
        batch_size=None,
        verbose="auto",
        steps=None,
        callbacks=None,
        tasks=None,
    ):
        """Predicts for inputs, as `keras.Model.predict`, or for some tasks.

        Args:
            tasks: List of names of the model's outputs. The result is a dict
                from these to arrays, and only what they need is run (a
                subclassed model runs its whole `call`). Defaults to `None`:
                all outputs, in the model's own structure.

        Returns:
            Arrays of predictions, or a dict of them.

        Raises:
            ValueError: If `tasks` names no output of the model.

        Example:

        >>> inputs = keras.Input((4,))
        >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
        >>> heads = {n: keras.layers.Dense(1)(trunk) for n in ("a", "b")}
        >>> model = mtlkeras.MultiTaskModel(inputs, heads)
        >>> predictions = model.predict(np.ones((2, 4)), tasks=["b"], verbose=0)
        >>> predictions["b"].shape
        (2, 1)
        """
        arguments = (batch_size, verbose, steps, callbacks)
        if tasks is None:
            return super().predict(x, *arguments)
        with self._predicting(self._check_outputs(tasks)):
            return super().predict(x, *arguments)

    def predict_step(self, data):
        names = self._multi_task.predicted
        if names is None:
            return super().predict_step(data)
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if is_functional(self):
            if depends_on_task(self):
                return self._run_by_task(names, x, training=False)
            return self._run(self._graph().part(names), x, training=False)
        outputs = self._run(self, x, training=False)
        check_names("tasks", names, self._as_dict(outputs))
        return {name: outputs[name] for name in names}

    def task_model(self, name):
        """A plain Keras model of one task, which shares layers and weights.

        It has the same inputs and one output. It can be used, trained, saved
        and exported by itself, and a file of it loads without mtlkeras, unless
        the model has layers of it. What changes in the one model changes in
        the other.

        Args:
            name: Name of the task, or of an output without a loss.

        Returns:
            A functional `keras.Model` that is not compiled.

        Raises:
            ValueError: If the model has no such output, or is not functional.

        Example:

        >>> inputs = keras.Input((4,))
        >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
        >>> heads = {n: keras.layers.Dense(1)(trunk) for n in ("a", "b")}
        >>> model = mtlkeras.MultiTaskModel(inputs, heads)
        >>> alone = model.task_model("b")
        >>> alone.output_shape
        (None, 1)
        >>> len(alone.layers), len(model.layers)
        (3, 4)
        """
        outputs = self._named_outputs(f"task_model({name!r})")
        check_names("name", [name], outputs)
        # The name of a task may be any string, that of a model may not.
        model_name = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
        model = keras.Model(self.input, outputs[name], name=model_name or None)
        if depends_on_task(model):
            return told_task(model, list(outputs).index(name))
        return model

    def with_task(self, name, output):
        """A model with one task more and with the same layers and weights.

        The new model is not compiled. Its outputs are a dict; for a model with
        a list of outputs, or one output, the keys are the names of the output
        layers, as in `task_names`. The model itself stays as it is.

        Args:
            name: Name of the new task.
            output: KerasTensor that was computed from this model's inputs or
                inner tensors, such as `Dense(1)(model.get_layer("x").output)`.

        Returns:
            A `MultiTaskModel`.

        Raises:
            ValueError: If the name is taken, the output is no KerasTensor of
                this model's graph, the model is not functional, or it has
                layers that do something else for each task.

        Example:

        >>> inputs = keras.Input((4,))
        >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
        >>> heads = {n: keras.layers.Dense(1)(trunk) for n in ("a", "b")}
        >>> model = mtlkeras.MultiTaskModel(inputs, heads)
        >>> larger = model.with_task("c", keras.layers.Dense(3)(trunk))
        >>> larger.task_names
        ('a', 'b', 'c')
        """
        outputs = self._named_outputs("with_task")
        if depends_on_task(self):
            raise ValueError(
                "A model with layers that do something else for each task, "
                "such as `RoamingMask`, cannot have a task more: they were "
                f"made for {len(outputs)}. Add the task to the model without "
                "these layers, and put them in with "
                "`MultiTaskModel.with_roaming`."
            )
        if not isinstance(name, str) or not name or name in outputs:
            raise ValueError(
                "Argument `name` must be a string that is not yet the name of "
                f"an output; the model has {list(outputs)}. Received: "
                f"name={name!r}"
            )
        if not isinstance(output, keras.KerasTensor):
            raise ValueError(
                "Argument `output` must be a KerasTensor, what a layer returns "
                "when it is called on a tensor of the model's graph, as in "
                "`keras.layers.Dense(1)(model.get_layer('trunk').output)`. "
                f"Received: output={output!r}"
            )
        return self._functional_form(
            self.input, {**outputs, name: output}, name=self.name
        )

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Exports the model for inference; see `keras.Model.export`.

        A SavedModel gets, beside Keras's endpoint `serve`, the signature
        `serving_default`, whose outputs are all of the model's by name, and
        for every output a signature of its name, which takes the inputs that
        it needs and runs nothing but what it needs. For a subclassed model,
        whose graph is not known, these take all inputs and run the whole
        `call`. Other formats are Keras's own.

        Args:
            filepath: Path to write to.
            format: As in `keras.Model.export`. Defaults to
                `"tf_saved_model"`.
            verbose: Whether to print the endpoints. Defaults to `None`, which
                is what Keras does for the format.
            input_signature: As in `keras.Model.export`. Defaults to `None`:
                the model's inputs, for batches of any size.

        Raises:
            ValueError: If the model is not built, or if an output has a name
                that a SavedModel cannot have beside its own.

        Example:

        >>> import tempfile
        >>> inputs = keras.Input((4,), name="features")
        >>> trunk = keras.layers.Dense(8, activation="relu")(inputs)
        >>> heads = {n: keras.layers.Dense(1)(trunk) for n in ("a", "b")}
        >>> model = mtlkeras.MultiTaskModel(inputs, heads)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.export(folder, verbose=False)
        ...     layer = keras.layers.TFSMLayer(folder, call_endpoint="b")
        >>> list(layer(np.ones((2, 4), "float32")))
        ['b']
        """
        if not self.built:
            raise ValueError(
                "Only a built model can be exported: its inputs must be known. "
                f"Received: the {type(self).__name__} {self.name!r}, which has "
                "not seen any data. Call it on data, or `fit` it, first."
            )
        if format == "tf_saved_model":
            export_saved_model(
                self, filepath, verbose, input_signature, **kwargs
            )
            return
        if is_functional(self):
            # Keras wants it to have been called, while only its parts have
            # been if it was trained task by task.
            self(keras.tree.map_structure(_like, self.input))
        # Keras 3.14 takes no `pathlib.Path` here.
        filepath = os.fspath(filepath)
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def summary(
        self,
        line_length=None,
        positions=None,
        print_fn=None,
        expand_nested=False,
        show_trainable=False,
        layer_range=None,
    ):
        """Prints a summary as Keras does, and whose the layers are.

        A second table says which layers the tasks share and which are a task's
        own. It is left out where there is one task, and where the tasks of a
        subclassed model are not known yet.
        """
        print_summary(
            self,
            super().summary,
            print_fn,
            line_length=line_length,
            positions=positions,
            expand_nested=expand_nested,
            show_trainable=show_trainable,
            layer_range=layer_range,
        )

    # -- small print ----------------------------------------------------------

    def _graph(self):
        """The `TaskGraph` of a functional model, compiled or not."""
        state = self._multi_task
        if state.structure is not None:
            return state.structure.graph
        if state.graph is None:
            state.graph = self._bound_tasks()[1].graph
        return state.graph

    def _named_outputs(self, method):
        """Dict from output name to KerasTensor."""
        if not is_functional(self):
            raise ValueError(
                f"`{method}` needs a functional model, whose graph of layers "
                f"is known. Received: the subclassed model "
                f"{type(self).__name__}. Build the model from inputs and "
                "outputs, or change the class's `call`. `predict(x, "
                "tasks=[...])` and `export(path)` work for any model."
            )
        return self._graph().outputs

    def _check_outputs(self, tasks):
        """The names that `predict` was given, in the order of the outputs."""
        if not isinstance(tasks, (list, tuple)) or not tasks:
            raise ValueError(
                "Argument `tasks` must be a list of at least one name. "
                f"Received: tasks={tasks!r}"
            )
        structure = self._multi_task.structure
        if is_functional(self):
            outputs = self._graph().outputs
        elif structure is not None:
            outputs = structure.outputs
        else:  # known once the model is called
            return tuple(dict.fromkeys(tasks))
        check_names("tasks", tasks, outputs)
        return tuple(name for name in outputs if name in tasks)

    def _as_dict(self, outputs):
        """Checks what the `call` of a subclassed model returned."""
        if not isinstance(outputs, dict):
            raise ValueError(
                "The `call` of a subclassed MultiTaskModel must return a dict "
                "from task names to tensors. The `call` of "
                f"{type(self).__name__} returned: {outputs!r}"
            )
        return outputs

    @contextlib.contextmanager
    def _predicting(self, names):
        """Keras's `predict` gives these outputs within this context."""
        state = self._multi_task
        before = state.predicted, self.predict_function
        state.predicted = names
        self.predict_function = state.predict_functions.get(names)
        try:
            yield
            state.predict_functions[names] = self.predict_function
        finally:
            state.predicted, self.predict_function = before


def _like(tensor):
    return keras.KerasTensor(tensor.shape, tensor.dtype)


def check_names(argument, names, outputs):
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise ValueError(
            f"Argument `{argument}` must name outputs of the model, which has "
            f"{list(outputs)}. Received: {unknown}, which it does not have."
        )
