import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.aggregated_step import AggregatedStep, add_to
from mtlkeras.backend.tensorflow.gradient_norms import is_input
from mtlkeras.backend.tensorflow.recorded_outputs import recorded_outputs
from mtlkeras.backend.tensorflow.replicas import sum_over_replicas


class FeatureStep(AggregatedStep):
    """The aggregator at features: a single backward pass through the trunk.

    Features are the tensors where the part of the network ends that tasks of
    the group share. A backward pass per task leads from its loss to them; the
    rule weighs these gradients, and the weighted sum goes on through the trunk.
    Tasks that leave the trunk at different tensors have no feature in common
    and so an inner product of 0.
    """

    def run(self, ran_before):
        with tf.GradientTape(persistent=True) as tape:
            # It watches nothing before the features, so it ends there, too.
            self.heads = tf.GradientTape(
                persistent=True, watch_accessed_variables=False
            )
            with self.heads:
                self.forward(self.batch.any_labelled(self.names))
                weighted = self.weighted
                scaled = {n: self.scale(weighted[n]) for n in self.names}
            extra = None if self.extra is None else self.scale(self.extra)
        added = self.take_extra(tape, extra)
        rows, direct, gradients = self.head_gradients(scaled)
        del self.heads
        matrices = [
            stack_rows(feature, [rows[name][k] for name in self.names])
            for k, feature in enumerate(self.features)
        ]
        gramian, squares = self.products(matrices)
        self.note_live(weighted, gradients, squares)
        self.note_norms(tape, squares)
        combined, weights = self.combine(matrices, gramian, weighted)
        for name in self.names:
            terms = [
                None if g is None else self.if_live(name, g) * weights[name]
                for g in direct[name]
            ]
            add_to(gradients, self.shared, terms)
        self.go_on(tape, combined, rows, gradients)
        add_to(gradients, self.variables, added)
        return self.finish(gradients, ran_before)

    def note_norms(self, tape, squares):
        """What a balancer wants to know is known here, if at features."""
        norms = self.batch.gradient_norms
        if norms is None:
            return
        if not norms.at_features:
            norms.note_by_task(tape, self.names, self.unweighted)
            return
        for name, square in zip(self.names, tf.unstack(squares), strict=True):
            weight = self.batch.loss_weights.latest[name]
            square = tf.cast(square, tf.float64)
            norms.squares[name] = square / tf.cast(weight, tf.float64) ** 2

    def predict(self):
        if self.aggregator.feature_layers is None:
            return self.predict_in_two_parts()
        self.features, self.past_features = [], []
        with recorded_outputs(
            self.model, self.aggregator.feature_layers, self.leave_trunk
        ) as record:
            predictions = super().predict()
        record.check()
        return predictions

    def leave_trunk(self, output):
        """A feature as what comes after it sees it.

        Between an early feature and a later one lies a part of the trunk. For
        the heads' tape the later one must not come from the early one: that
        way is gone when the trunk's own backward pass starts at both.
        """
        output = tf.convert_to_tensor(output)
        if not output.dtype.is_floating:
            return output
        with self.heads.stop_recording():
            past = tf.identity(output)
        mask = getattr(output, "_keras_mask", None)
        if mask is not None:
            past._keras_mask = mask
        self.features.append(output)
        self.past_features.append(past)
        self.heads.watch(past)
        self.heads.watch([v.value for v in self.variables])
        return past

    def predict_in_two_parts(self):
        trunk, heads = self.plan.structure.cut_for(
            tuple((name,) for name in self.names)
        )
        outputs = keras.tree.flatten(
            self.model._run(trunk, self.batch.x, training=True)
        )
        outputs = [tf.convert_to_tensor(output) for output in outputs]
        self.watch(
            [
                output
                for output, tensor in zip(outputs, trunk.outputs, strict=True)
                if not is_input(tensor) and output.dtype.is_floating
            ]
        )
        predictions = {}
        for head in heads:
            inputs = [outputs[i] for i in head.positions]
            predictions.update(self.model._run(head, inputs, training=True))
        return predictions

    def watch(self, features):
        """From here on everything is past the features."""
        self.features = self.past_features = features
        self.heads.watch(features)
        self.heads.watch([v.value for v in self.variables])

    def head_gradients(self, scaled):
        """Gradients past the features, by task.

        Returns:
            Tuple of dicts: at the features; of shared variables that heads use
            once more; and of the heads' own variables, by `id(variable)`.
        """
        rows, direct, gradients = {}, {}, {}
        count = len(self.features)
        for name in self.names:
            sources = [*self.past_features, *self.shared, *self.own[name]]
            taken = self.heads.gradient(scaled[name], sources)
            rows[name] = taken[:count]
            direct[name] = taken[count : count + len(self.shared)]
            add_to(gradients, self.own[name], taken[count + len(self.shared) :])
        used = [g for taken in direct.values() for g in taken if g is not None]
        if used and self.aggregator.needs_rows:
            raise ValueError(
                f"{type(self.aggregator).__name__} at features has no weights "
                "for variables that several heads use past the features. Use "
                "`gradients_at='parameters'` or give heads layers of their own."
            )
        return rows, direct, gradients

    def products(self, matrices):
        gramian, squares = super().products(matrices)
        # The rows of the batch are spread over the replicas.
        if gramian is not None:
            gramian = sum_over_replicas(gramian)
            return gramian, tf.linalg.diag_part(gramian)
        return None, sum_over_replicas(squares)

    def combine(self, matrices, gramian, weighted):
        """The directions at the features, and the weight of each task."""
        if not matrices:
            # Nothing is shared up to here: plain sums of what is past it.
            return [], dict.fromkeys(self.names, 1.0)
        if self.aggregator.needs_rows:
            parts = self.parts_of_direction(matrices, weighted)
            weights = dict.fromkeys(self.names)
        else:
            vector = self.weigh(gramian, weighted)
            parts = [
                tf.linalg.matvec(
                    self.without_dead(rows),
                    tf.cast(vector, rows.dtype),
                    transpose_a=True,
                )
                for rows in matrices
            ]
            vector = tf.cast(vector, keras.backend.floatx())
            weights = dict(zip(self.names, tf.unstack(vector), strict=True))
        return [
            tf.cast(tf.reshape(part, tf.shape(feature)), feature.dtype)
            for part, feature in zip(parts, self.features, strict=True)
        ], weights

    def go_on(self, tape, combined, rows, gradients):
        """Adds what flows from the features to the trunk."""
        targets, seeds = list(self.features), list(combined)
        if targets:
            taken = tape.gradient(
                targets, self.variables, output_gradients=seeds
            )
            by_id = dict(zip(map(id, self.variables), taken, strict=True))
            add_to(gradients, self.shared, [by_id[id(v)] for v in self.shared])
            for name in self.names:
                # Before the features, too, a task's own variables follow the
                # plain gradient of its loss.
                before = [v for v in self.own[name] if by_id[id(v)] is not None]
                if before:
                    seeds = [
                        tf.zeros_like(f) if g is None else self.if_live(name, g)
                        for f, g in zip(targets, rows[name], strict=True)
                    ]
                    taken = tape.gradient(
                        targets, before, output_gradients=seeds
                    )
                    add_to(gradients, before, taken)


def stack_rows(feature, gradients):
    """Gradients at one feature, `[num_tasks, size]`, in float32 at least."""
    size = tf.size(feature)
    dtype = tf.float64 if feature.dtype == tf.float64 else tf.float32
    return tf.stack(
        [
            tf.zeros([size], dtype)
            if gradient is None
            else tf.cast(tf.reshape(gradient, [size]), dtype)
            for gradient in gradients
        ]
    )
