import keras

from mtlkeras.models.multi_task_model import MultiTaskModel

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


MultiTaskModel._functional_form = FunctionalMultiTaskModel
