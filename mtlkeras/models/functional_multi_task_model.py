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
        parts = self._multi_task.parts
        if not parts:
            # Made once, and kept where Keras does not track them.
            parts.extend(
                keras.Model(self.input, output)
                for output in self._outputs_in_order()
            )
        outputs = []
        for task, part in enumerate(parts):
            with running_task(task):
                outputs.append(part(inputs, training=training))
        if isinstance(self.output, dict):
            return dict(zip(self.output, outputs, strict=True))
        return outputs if isinstance(self.output, list) else outputs[0]

    def _outputs_in_order(self):
        if isinstance(self.output, dict):
            return list(self.output.values())
        return keras.tree.flatten(self.output)


MultiTaskModel._functional_form = FunctionalMultiTaskModel
