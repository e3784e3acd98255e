import keras

from mtlkeras.layers.running_task import current_task, running_task
from mtlkeras.models.multi_task_model import MultiTaskModel
from mtlkeras.models.task_structure import depends_on_task

# The class that Keras makes of `keras.Model(inputs, outputs)`. It has no public
# name, and building a model to ask for its type would fix the global dtype.
Functional = type(keras.Model.__new__(keras.Model, None, None))


@keras.saving.register_keras_serializable("mtlkeras")
class FunctionalMultiTaskModel(MultiTaskModel, Functional):
    """What `MultiTaskModel(inputs, outputs)` makes; use that name.

    Keras patches the bases of a subclass of Model that is called with inputs
    and outputs, up to Model; after that no subclass with a `call` of its own
    can be made. So the functional form is a class of its own.
    """

    # Keras revives a functional model from its config only if the arguments
    # have exactly these names.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def call(self, inputs, training=None, mask=None, **kwargs):
        """The outputs; task by task if a layer depends on the task."""
        if not depends_on_task(self) or current_task() is not None:
            return super().call(inputs, training=training, mask=mask, **kwargs)
        found = self._run_by_task(list(self._graph().outputs), inputs, training)
        if isinstance(self.output, dict):
            return found
        outputs = list(found.values())
        return outputs if isinstance(self.output, list) else outputs[0]

    def _run_by_task(self, names, inputs, training):
        """Dict from name to output, each from a pass of its own.

        In the pass for an output, layers that depend on the task run for it.
        """
        graph, outputs = self._graph(), {}
        order = list(graph.outputs)
        for name in names:
            with running_task(order.index(name)):
                part = graph.part((name,))
                outputs.update(self._run(part, inputs, training=training))
        return outputs


MultiTaskModel._functional_form = FunctionalMultiTaskModel
