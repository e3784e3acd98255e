import inspect
import math


class Candidate:
    """One of the methods among which a hyperparameter chooses.

    An id or a class stands for the method with its hyperparameters; an object
    stands for itself, with the arguments that it has.

    Args:
        given: An id, a class, a Keras-serialized config or an object.
        folder: The module whose `get` knows it, e.g. `mtlkeras.aggregators`.
    """

    def __init__(self, given, folder):
        instance = folder.get(given)
        self.cls = type(instance)
        self.is_fixed = not isinstance(given, (str, type))
        # Not the object: a trial must not go on with the state of another.
        self.config = instance.get_config() if self.is_fixed else {}
        self.id = self.cls.__module__.rpartition(".")[2]
        own = not self.cls.__module__.startswith(f"{folder.__name__}.")
        if own or self.id not in folder.ids():
            self.id = self.cls.__name__

    def make(self, **arguments):
        """A new object."""
        return self.cls.from_config({**self.config, **arguments})

    def takes(self, argument):
        return argument in inspect.signature(self.cls.__init__).parameters

    def default(self, argument):
        """Default of an argument in the signature, or `None`."""
        parameters = inspect.signature(self.cls.__init__).parameters
        found = parameters[argument].default if argument in parameters else None
        return None if found is inspect.Parameter.empty else found


def read_candidates(argument, given, folder):
    """Dict from name to `Candidate`, or to `None` for no method.

    Args:
        argument: Name of the user's argument, for error messages.
        given: What the user gave: a list, or a dict that gives names.
        folder: The module of such methods.

    Raises:
        ValueError: If it is empty, or if two would have the same name.
    """
    if not isinstance(given, (dict, list, tuple)) or not given:
        raise ValueError(
            f"Argument `{argument}` must be a list of at least one id, class "
            f"or object, or a dict of these by name. Received: "
            f"{argument}={given!r}"
        )
    if isinstance(given, dict):
        methods = given.items()
    else:
        methods = [(None, method) for method in given]
    found = {}
    for name, method in methods:
        nothing = method is None and folder.get(None) is None
        candidate = None if nothing else Candidate(method, folder)
        name = name or ("none" if nothing else candidate.id)
        if name in found:
            raise ValueError(
                f"The methods in `{argument}` must have different names, while "
                f"{name!r} comes twice. Give them names of your own: "
                f"`{argument}={{'first': ..., 'second': ...}}`. Received: "
                f"{argument}={given!r}"
            )
        found[name] = candidate
    return found


def declare(hp, name, space, default=None):
    """Asks for one hyperparameter, or for a dict of them.

    Args:
        hp: A `keras_tuner.HyperParameters`.
        name: Its name.
        space: As in `search_spaces`.
        default: Value to begin with. Defaults to `None`: the first choice, or
            the middle of the range.

    Returns:
        The value; in a scope that is not active nothing that means anything.
    """
    if isinstance(space, dict):
        defaults = default if isinstance(default, dict) else {}
        return {
            key: declare(hp, f"{name}/{key}", inner, defaults.get(key))
            for key, inner in space.items()
        }
    if isinstance(space, list) and space:
        # Keras Tuner has no `None`.
        by_label = {"none" if v is None else v: v for v in space}
        first = "none" if default is None else default
        if first not in by_label:
            first = next(iter(by_label))
        return by_label.get(hp.Choice(name, list(by_label), default=first))
    check_range(name, space)
    low, high = space[:2]
    sampling = space[2] if len(space) > 2 else "linear"
    integers = isinstance(low, int) and isinstance(high, int)
    if default is None or not low <= default <= high:
        logarithmic = sampling == "log"
        default = math.sqrt(low * high) if logarithmic else (low + high) / 2
        default = math.floor(default) if integers else default
    ask = hp.Int if integers else hp.Float
    return ask(name, low, high, sampling=sampling, default=default)


def check_range(name, space):
    """Whether a space is `(min, max)` or `(min, max, sampling)`."""
    sound = isinstance(space, tuple) and len(space) in (2, 3)
    sound = sound and all(
        isinstance(n, (int, float)) and not isinstance(n, bool)
        for n in space[:2]
    )
    sound = sound and space[0] <= space[1]
    if sound and len(space) == 3:
        sound = space[2] in ("linear", "log") and (
            space[2] == "linear" or space[0] > 0
        )
    if not sound:
        raise ValueError(
            f"The search space of {name!r} must be a tuple (min, max) or "
            "(min, max, 'log') of numbers, positive for 'log', a list of "
            f"choices, or a dict of such spaces. Received: {space!r}"
        )
