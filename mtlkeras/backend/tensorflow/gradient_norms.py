import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.recorded_outputs import recorded_outputs
from mtlkeras.backend.tensorflow.replicas import sum_over_replicas


class GradientNorms:
    """Lengths of the task gradients where the shared part of a network ends.

    For functional models at features, every task reads the features through
    copies of its own, so the one backward pass that trains the group gives the
    gradient of each task, too. Elsewhere each task takes a backward pass of its
    own, which ends at the features or at the last shared layer.

    Args:
        batch: The `Batch`.
    """

    def __init__(self, batch):
        self.batch = batch
        self.model = batch.model
        self.structure = batch.model._multi_task.structure
        self.balancer = batch.loss_weights.balancer
        self.at_features = self.balancer.norms_at == "features"
        layers = self.balancer.feature_layers
        self.by_copies = self.at_features and layers is None
        self.sources = {}  # task -> list of tensors
        self.squares = {}  # task -> squared length, weight and loss scale in it
        if layers is None and self.structure.graph is None:
            raise ValueError(
                f"{type(self.balancer).__name__} finds where the shared part "
                "ends from the graph of a functional model. Received a "
                "subclassed model, whose graph is not known. Pass the names "
                "of the last layers that the tasks share: "
                f"`{type(self.balancer).__name__}(feature_layers=['name'])`."
            )
        self._check_strategy()

    def _check_strategy(self):
        """Where groups are chosen in the graph, only one way is open."""
        strategy = self.model._multi_task.strategy
        drawn = strategy.regroups != "never"
        chosen = not drawn and (strategy.one_group_per_step or strategy.shuffle)
        largest = max(map(len, self.model._multi_task.plan.groups))
        if (drawn or chosen) and not self.by_copies:
            raise ValueError(
                f"With strategy={strategy!r}, which chooses groups in the "
                f"graph, {type(self.balancer).__name__} takes norms at the "
                "features of functional models only. Received: norms_at="
                f"{self.balancer.norms_at!r}, feature_layers="
                f"{self.balancer.feature_layers!r}. Use a functional model "
                "and norms_at='features', or another strategy."
            )
        if chosen and largest > 1:
            raise ValueError(
                f"{type(self.balancer).__name__} needs the gradient of every "
                "task, while this strategy visits groups of several tasks in "
                f"a drawn order. Received: strategy={strategy!r}. Use "
                "`shuffle=False`."
            )

    def predict(self, names):
        """Dict from task to its output; notes where its gradient is taken."""
        if self.by_copies:
            return self._predict_in_two_parts(names)
        layers = self.balancer.feature_layers
        if not self.at_features:
            return self.model._forward(names, self.batch.x)
        features = []

        def keep(output):
            features.append(tf.convert_to_tensor(output))
            return output

        with recorded_outputs(self.model, layers, keep) as record:
            predictions = self.model._forward(names, self.batch.x)
        record.check()
        self.sources.update(dict.fromkeys(names, features))
        return predictions

    def _predict_in_two_parts(self, names):
        every = self.structure.tasks.names
        trunk, heads = self.structure.cut_for(tuple((n,) for n in every))
        outputs = keras.tree.flatten(
            self.model._run(trunk, self.batch.x, training=True)
        )
        outputs = [tf.convert_to_tensor(output) for output in outputs]
        predictions = {}
        for name, head in zip(every, heads, strict=True):
            if name in names:
                inputs = self.copies(name, trunk, outputs, head.positions)
                found = self.model._run(head, inputs, training=True)
                predictions.update(found)
        return predictions

    def copies(self, name, trunk, outputs, positions):
        """The features that a task reads, as tensors of its own."""
        copies = []
        for position in positions:
            output = outputs[position]
            copy = tf.identity(output)
            mask = getattr(output, "_keras_mask", None)
            if mask is not None:
                copy._keras_mask = mask
            copies.append(copy)
        self.note_sources(name, trunk, copies, positions)
        return copies

    def note_sources(self, name, trunk, tensors, positions):
        self.sources[name] = [
            tensor
            for tensor, position in zip(tensors, positions, strict=True)
            if tensor.dtype.is_floating
            and not is_input(trunk.outputs[position])
        ]

    # -- for one backward pass of several tasks -------------------------------

    def flat_sources(self, names):
        """The copies of some tasks, in order; none if they are not copies."""
        if not self.by_copies:
            return []
        return [s for name in names for s in self.sources[name]]

    def note_flat(self, names, gradients, weights, scale):
        """Notes gradients of `flat_sources`, those of weighted losses."""
        gradients = iter(gradients)
        for name in names:
            own = [next(gradients) for _ in self.sources[name]]
            weight = weights[name]
            self.note(name, own, weight * tf.cast(scale, weight.dtype))

    def note_by_task(self, tape, names, losses):
        """One backward pass per task, from its loss without any weight."""
        if not self.at_features:
            layers = self.balancer.feature_layers
            variables = self.structure.last_shared_variables(layers)
            self.sources.update(dict.fromkeys(names, variables))
        for name in names:
            own = tape.gradient(losses[name], self.sources[name])
            weight = self.batch.tasks.weights[name]
            self.note(name, own, 1.0 if weight is None else 1.0 / weight)

    def note(self, name, gradients, factor):
        """Notes a task's gradients, `factor` times those of its loss."""
        total = self.squared_length(self._in_total(gradients), factor)
        if self.at_features:
            total = sum_over_replicas(total)
        self.squares[name] = total

    @staticmethod
    def squared_length(gradients, factor):
        squares = [
            tf.cast(tf.nn.l2_loss(tf.cast(g, tf.float32)), tf.float64) * 2
            for g in gradients
        ]
        total = tf.add_n(squares) if squares else tf.zeros([], tf.float64)
        return total / tf.cast(factor, tf.float64) ** 2

    def _in_total(self, gradients):
        gradients = [
            tf.convert_to_tensor(g) for g in gradients if g is not None
        ]
        if self.at_features:
            return gradients  # each replica has rows of its own
        return [sum_over_replicas(g) for g in gradients]

    # -- the end of the batch -------------------------------------------------

    def finish_batch(self):
        names = self.batch.tasks.names
        squares = tf.stack(
            [self.squares.get(n, tf.zeros([], tf.float64)) for n in names]
        )
        ran = [
            tf.constant(n in self.squares) & self.batch.ran[n] for n in names
        ]
        measured = tf.stack(ran) & tf.math.is_finite(squares)
        norms = tf.sqrt(tf.where(measured, squares, 0.0))
        self.balancer.note_gradient_norms(norms, measured)


def is_input(tensor):
    return isinstance(tensor._keras_history.operation, keras.layers.InputLayer)
