import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.affinity_step import affinity_step
from mtlkeras.backend.tensorflow.aggregated_step import AggregatedStep
from mtlkeras.backend.tensorflow.batch import Batch
from mtlkeras.backend.tensorflow.batch_monitor import BatchMonitor
from mtlkeras.backend.tensorflow.distribution import DistributedTrainer
from mtlkeras.backend.tensorflow.feature_step import FeatureStep
from mtlkeras.backend.tensorflow.fused import fused_update
from mtlkeras.backend.tensorflow.joint_step import joint_step
from mtlkeras.backend.tensorflow.recorded_outputs import find_layer
from mtlkeras.backend.tensorflow.regrouped_step import regrouped_step
from mtlkeras.backend.tensorflow.replicas import update_if
from mtlkeras.backend.tensorflow.selected_step import selected_step
from mtlkeras.backend.tensorflow.sequential_step import sequential_step
from mtlkeras.backend.tensorflow.simultaneous_step import simultaneous_step


class TensorFlowMultiTaskTrainer(DistributedTrainer):
    """Steps of a `MultiTaskModel` on TensorFlow, beside Keras's own trainer.

    Keras's `fit` and `evaluate` stay as they are; they call `train_step` and
    `test_step`. Which kind of step runs is read off the strategy's attributes.
    """

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._bind_to(x)
        state = self._multi_task
        batch = Batch(self, x, y, sample_weight, training=True)
        if state.measurements is not None:
            batch.monitor = BatchMonitor(batch)
            batch.monitor.measure()
        strategy = state.strategy
        aggregator = state.update.aggregator
        if aggregator is not None:
            at_features = aggregator.gradients_at == "features"
            sequential_step(
                batch, FeatureStep if at_features else AggregatedStep
            )
        elif strategy.updates_jointly and not batch.loss_weights.vary:
            joint_step(batch)
        elif strategy.regroups == "measured":
            affinity_step(batch)
        elif strategy.regroups != "never":
            regrouped_step(batch)
        elif strategy.at_same_weights:
            simultaneous_step(batch)
        elif strategy.one_group_per_step or strategy.shuffle:
            selected_step(batch)
        else:
            sequential_step(batch)
        batch.loss_weights.finish_batch()
        batch.count()
        return self._step_logs(batch.compute_metrics())

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._bind_to(x)
        batch = Batch(self, x, y, sample_weight)
        y_pred = self._run(self, x, training=False)
        total = batch.compute_total(y_pred, training=False)
        batch.predictions = batch.tasks.split(y_pred, "y_pred")
        batch.losses = dict(batch.tasks.values)
        batch.extra = [total - batch.group_loss(batch.losses)]
        batch.track(total)
        return self._step_logs(batch.compute_metrics())

    def _run(self, layer, x, training):
        """Calls a model or a part of it as Keras's trainer does."""
        if getattr(layer, "_call_has_training_arg", True):
            return layer(x, training=training)
        return layer(x)

    def _forward(self, names, x):
        """Predictions of the named outputs, running only what they need."""
        state = self._multi_task
        if state.structure.depends_on_task:
            return self._run_by_task(names, x, training=True)
        if state.structure.graph is None:
            y_pred = self._run(self, x, training=True)
            outputs = state.tasks.split(y_pred, "y_pred")
            return {name: outputs[name] for name in names}
        return self._run(state.structure.graph.part(names), x, training=True)

    def _fuse_updates(self, optimizer):
        """Fused updates for containers of several clones, on one device."""
        if not tf.distribute.has_strategy():
            optimizer.replace_update_steps(fused_update)

    def _prepare_aggregator(self, aggregator):
        """Compiles a rule's solver by itself; checks its feature layers."""
        for name in aggregator.feature_layers or ():
            find_layer(self, name)
        # Who runs eagerly wants to look into it.
        if not tf.distribute.has_strategy() and not self.run_eagerly:
            aggregator.compile_solver(
                lambda solve: tf.function(
                    solve, jit_compile=True, autograph=False
                )
            )

    def _select_updates(self, optimizer):
        """Lets updates that depend on a condition run on several replicas."""
        optimizer.replace_branches(update_if)

    def _check_one_device(self, name):
        """Refuses what is measured on one device only."""
        strategy = self.distribute_strategy
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"`{name}` measures on one device: no branch of a training "
                "step can hold the exchange between several. Received a model "
                f"on {strategy.num_replicas_in_sync} replicas. Leave it out, "
                "or train some batches on one device to measure there."
            )

    def _find_connections(self, tasks, inputs):
        """Which trainable variables the gradient of each output reaches.

        Args:
            tasks: The model's `TaskSet`.
            inputs: Structure of KerasTensors.

        Returns:
            Dict from output name to a set of variable indices.
        """
        # Of several replicas the first: their graphs are the same.
        replicas = self.distribute_strategy.experimental_local_results
        variables = [replicas(v.value)[0] for v in self.trainable_variables]
        reach = {}

        def trace(x):
            with tf.GradientTape(persistent=True) as tape:
                y_pred = self._run(self, x, training=True)
                outputs = tasks.split(y_pred, "y_pred")
                sums = {
                    name: tf.reduce_sum(tf.cast(outputs[name], tf.float32))
                    for name in tasks.names
                }
            for name in tasks.names:
                gradients = tape.gradient(sums[name], variables)
                reach[name] = {
                    i for i, g in enumerate(gradients) if g is not None
                }
            return 0

        specs = keras.tree.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), inputs
        )
        # Traced and thrown away: nothing of the model runs.
        tf.function(trace, autograph=False).get_concrete_function(specs)
        return reach
