import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.task_element import TaskElement


class TaskDatasets:
    """Data sets that label some tasks each, made alike: over all tasks.

    Every batch becomes `(x, y, sample_weight)` with the same structure in all
    data sets, `y` and `sample_weight` dicts over all tasks: 0 with weight 0
    for a task that the data set does not label.

    Args:
        datasets: Dict from name to a batched `tf.data.Dataset`.
        fill_missing_inputs: Whether keys of `x` that a data set lacks become
            zeros.

    Attributes:
        sizes: Dict from name to the number of batches: an integer, infinity,
            or `None` where it is not known.
    """

    def __init__(self, datasets, fill_missing_inputs):
        if not isinstance(datasets, dict) or not datasets:
            raise ValueError(
                "Argument `datasets` must be a dict from task names to data "
                f"sets, with at least one. Received: datasets={datasets!r}"
            )
        self.elements = [TaskElement(n, d) for n, d in datasets.items()]
        self.sizes = {n: size_of(n, d) for n, d in datasets.items()}
        self._check_inputs(fill_missing_inputs)
        self.inputs = self._merge(lambda e: as_dict(e.inputs), "input")
        self.targets = self._merge(lambda e: e.targets, "target")
        self.weights = {
            task: tf.TensorSpec([None], keras.backend.floatx())
            for task in self.targets
        }
        self.weights.update(self._merge(lambda e: e.weights, "sample weight"))
        self._datasets = [
            dataset.map(self._completed(element))
            for element, dataset in zip(
                self.elements, datasets.values(), strict=True
            )
        ]

    def chosen(self, select, num_batches, repeat):
        """A batch of one data set after the other.

        Args:
            select: Function from the number of a batch to the index of its
                data set, in operations that run inside of the graph.
            num_batches: Integer, or `None`: not known, or without end.
            repeat: Whether a data set that has ended begins anew. Otherwise
                it is passed over.
        """
        datasets = self._datasets
        numbers = tf.data.Dataset.counter()
        if repeat:
            datasets = [dataset.repeat() for dataset in datasets]
            if num_batches is not None:
                numbers = tf.data.Dataset.range(num_batches)
        chosen = tf.data.Dataset.choose_from_datasets(
            datasets, numbers.map(select), stop_on_empty_dataset=repeat
        )
        if num_batches is None:
            return chosen
        return chosen.apply(
            tf.data.experimental.assert_cardinality(num_batches)
        )

    def joined(self, num_batches):
        """Batches of the rows of one batch of every data set."""
        datasets = [dataset.repeat() for dataset in self._datasets]
        joined = tf.data.Dataset.zip(tuple(datasets)).map(
            lambda *batches: tf.nest.map_structure(
                lambda *parts: tf.concat(parts, 0), *batches
            )
        )
        return joined if num_batches is None else joined.take(num_batches)

    def _check_inputs(self, fill_missing_inputs):
        """Inputs have one structure, or keys that may be filled."""
        first, *others = self.elements
        for other in others:
            if isinstance(first.inputs, dict) and isinstance(
                other.inputs, dict
            ):
                continue
            try:
                tf.nest.assert_same_structure(first.inputs, other.inputs)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    "The inputs of all data sets must have the same structure. "
                    f"Received: {first.inputs} from '{first.name}', "
                    f"{other.inputs} from '{other.name}'. Bring them to one "
                    "form with `dataset.map`."
                ) from error
        if not isinstance(first.inputs, dict) or fill_missing_inputs:
            return
        keys = set().union(*(element.inputs for element in self.elements))
        for element in self.elements:
            missing = sorted(keys - set(element.inputs))
            if missing:
                raise ValueError(
                    "The inputs of all data sets must have the same keys. "
                    f"Received: '{element.name}' without {missing}, which "
                    "others have. Rename keys with `dataset.map`, or pass "
                    "`fill_missing_inputs=True` to have zeros in their place."
                )

    def _merge(self, part, what):
        """Dict from key to its spec, which all data sets agree on."""
        found = {}
        for element in self.elements:
            for key, spec in part(element).items():
                owner, known = found.setdefault(key, (element.name, spec))
                if (
                    known.dtype != spec.dtype
                    or known.shape.rank != spec.shape.rank
                    or known.shape[1:].as_list() != spec.shape[1:].as_list()
                ):
                    raise ValueError(
                        f"The {what} {key!r} must have the same shape, but for "
                        "the batch, and dtype in all data sets. Received: "
                        f"{describe(known)} from '{owner}', {describe(spec)} "
                        f"from '{element.name}'. Resize or cast with "
                        "`dataset.map`."
                    )
        return {key: spec for key, (_, spec) in found.items()}

    def _completed(self, element):
        """Function that makes a batch of one data set one over all tasks."""

        def missing(specs, present, what, value=tf.zeros):
            return {
                key: constant(value, spec, f"{what} {key!r}")
                for key, spec in specs.items()
                if key not in present
            }

        is_dict = isinstance(element.inputs, dict)
        x_fill = missing(self.inputs, as_dict(element.inputs), "input")
        y_fill = missing(self.targets, element.targets, "target")
        w_fill = {
            **missing(self.weights, element.targets, "sample weight"),
            **missing(
                {t: self.weights[t] for t in element.targets},
                element.weights,
                "sample weight",
                tf.ones,
            ),
        }

        def complete(*batch):
            x, y, weights = element.split(batch)
            rows = tf.shape(tf.nest.flatten(x)[0])[0]
            if is_dict:
                x = ordered(self.inputs, x, x_fill, rows)
            y = ordered(self.targets, y, y_fill, rows)
            weights = {
                task: tf.cast(weight, keras.backend.floatx())
                for task, weight in weights.items()
            }
            return x, y, ordered(self.weights, weights, w_fill, rows)

        return complete


def ordered(keys, given, fillers, rows):
    """Dict in the order of `keys`: what is given, and what fills the rest."""
    return {
        key: given[key] if key in given else fillers[key](rows) for key in keys
    }


def constant(value, spec, what):
    """Function from the number of rows to a tensor of one value."""
    shape = spec.shape[1:]
    if not shape.is_fully_defined():
        raise ValueError(
            f"The {what} must have a known shape but for the batch, since data "
            f"sets without it get zeros in its place. Received: "
            f"{describe(spec)}. Use `dataset.map` with `tf.ensure_shape`."
        )
    dtype = spec.dtype
    if "weight" in what:
        dtype = keras.backend.floatx()
    return lambda rows: value([rows, *shape], dtype)


def as_dict(inputs):
    if isinstance(inputs, dict):
        return inputs
    return dict(enumerate(tf.nest.flatten(inputs)))


def describe(spec):
    return f"shape {spec.shape} and dtype {spec.dtype.name}"


def size_of(name, dataset):
    size = int(dataset.cardinality())
    if size == 0:
        raise ValueError(
            "Every data set must hold at least one batch. Received: "
            f"'{name}', which is empty."
        )
    if size == tf.data.INFINITE_CARDINALITY:
        return float("inf")
    return None if size == tf.data.UNKNOWN_CARDINALITY else size
