import tensorflow as tf


class TaskElement:
    """What a batch of a data set holds: inputs, targets and sample weights.

    Args:
        name: String, the name of the data set; that of its task where `y` is
            no dict.
        dataset: Batched `tf.data.Dataset` of `(x, y)` or
            `(x, y, sample_weight)`.

    Attributes:
        inputs: Structure of `tf.TensorSpec`.
        targets: Dict from task to its `tf.TensorSpec`.
        weights: The same, for the tasks that have sample weights.
    """

    def __init__(self, name, dataset):
        if not isinstance(dataset, tf.data.Dataset):
            raise ValueError(
                f"The data set of '{name}' must be a `tf.data.Dataset`. "
                f"Received: {type(dataset)}. For arrays use "
                "`tf.data.Dataset.from_tensor_slices((x, y)).batch(32)`."
            )
        self.name = name
        self.spec = dataset.element_spec
        if not isinstance(self.spec, tuple) or len(self.spec) not in (2, 3):
            self._refuse("yield `(x, y)` or `(x, y, sample_weight)`")
        self._check_batched()
        self.inputs, self.targets, self.weights = self.split(self.spec)
        unknown = [task for task in self.weights if task not in self.targets]
        if unknown or not self.targets:
            self._refuse("have a target for every sample weight, at least one")

    def split(self, given):
        """`(x, targets, sample weights)`, the last two as dicts over tasks."""
        x, y, *rest = given
        y = y if isinstance(y, dict) else {self.name: y}
        if not rest:
            return x, y, {}
        weights = rest[0]
        return (
            x,
            y,
            (
                weights
                if isinstance(weights, dict)
                else dict.fromkeys(y, weights)
            ),
        )

    def _check_batched(self):
        leaves = tf.nest.flatten(self.spec)
        if not leaves or not all(
            isinstance(leaf, tf.TensorSpec) and leaf.shape.rank is not None
            for leaf in leaves
        ):
            self._refuse("yield dense tensors of known rank")
        first = leaves[0].shape[:1]
        if not all(
            leaf.shape.rank > 0 and first.is_compatible_with(leaf.shape[:1])
            for leaf in leaves
        ):
            self._refuse(
                "be batched, with as many rows in `x`, `y` and `sample_weight`",
                " Call `dataset.batch(batch_size)`.",
            )

    def _refuse(self, what, way_out=""):
        raise ValueError(
            f"The data set of '{self.name}' must {what}. Received: elements "
            f"of {self.spec}.{way_out}"
        )
