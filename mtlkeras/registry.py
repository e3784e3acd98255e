import difflib
import inspect
import re

import keras


class Registry:
    """String id -> class, for the `get()` and `ids()` of one folder.

    The id of a class is the name of its file: one rule, held by a test.

    Args:
        base: The base class of what the folder holds.
        argument: Name of the argument in `compile`, for error messages.
    """

    def __init__(self, base, argument):
        self.base = base
        self.argument = argument
        self.classes = {}

    def add(self, *classes):
        for cls in classes:
            self.classes[cls.__module__.rpartition(".")[2]] = cls

    def ids(self):
        """The registered ids, sorted."""
        return sorted(self.classes)

    def get(self, identifier):
        """An object from an id, a Keras-serialized config or an object.

        Raises:
            ValueError: If the id is unknown or the object of another kind.
        """
        if isinstance(identifier, self.base):
            return identifier
        if isinstance(identifier, type) and issubclass(identifier, self.base):
            return identifier()
        if isinstance(identifier, dict):
            instance = keras.saving.deserialize_keras_object(identifier)
            if isinstance(instance, self.base):
                return instance
        if isinstance(identifier, str):
            return self._from_id(identifier)
        kind = f"{self.base.__module__}.{self.base.__name__}"
        kind = re.sub(r"\.\w+\.(\w+)$", r".\1", kind)
        raise ValueError(
            f"Argument `{self.argument}` must be a string id out of "
            f"{self.ids()}, a Keras-serialized config or a `{kind}`. "
            f"Received: {self.argument}={identifier!r} "
            f"(of type {type(identifier)})"
        )

    def _from_id(self, identifier):
        name = identifier.lower()
        if name not in self.classes:
            near = difflib.get_close_matches(name, self.ids(), 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"Argument `{self.argument}` must be one of the ids "
                f"{self.ids()}. Received: "
                f"{self.argument}={identifier!r}.{hint}"
            )
        try:
            return self.classes[name]()
        except TypeError as error:
            raise ValueError(
                f"`{self.argument}={identifier!r}` needs arguments, so pass an "
                f"object: `{self.classes[name].__name__}(...)` with values for "
                f"{_required(self.classes[name])}."
            ) from error


def _required(cls):
    """Names of the arguments that have no default."""
    parameters = inspect.signature(cls.__init__).parameters
    return [
        name
        for name, parameter in list(parameters.items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
