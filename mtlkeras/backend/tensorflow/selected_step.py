import keras
import tensorflow as tf

from mtlkeras.backend.tensorflow.batch import all_flags, both
from mtlkeras.backend.tensorflow.finite import all_finite
from mtlkeras.backend.tensorflow.gradient_norms import is_input
from mtlkeras.backend.tensorflow.replicas import (
    exchanges,
    num_replicas,
    sum_over_replicas,
    update_if,
)
from mtlkeras.backend.tensorflow.sequential_step import GroupStep
from mtlkeras.backend.tensorflow.state import (
    ForwardScope,
    is_loss_scaled,
    is_seed,
)
from mtlkeras.layers.running_task import running_task


def selected_step(batch):
    """Groups chosen inside the graph: one for the batch, or all in an order.

    The trunk runs outside of the switch over the groups, so that a branch
    holds a head only and tracing does not grow with trunk times groups.
    """
    model = batch.model
    strategy, optimizer = model._multi_task.strategy, model.optimizer
    count = len(model._multi_task.plan.groups)
    step = SelectedStep(batch)
    results = step.empty()
    if strategy.one_group_per_step:
        if step.labelled is True:
            chosen = strategy.select_group(optimizer.iterations)
        else:
            chosen = strategy.select_labelled_group(
                optimizer.iterations, step.labelled
            )
        results = step.run(tf.cast(chosen, tf.int32), results)
    else:
        order = tf.cast(strategy.order_groups(optimizer.iterations), tf.int32)
        if exchanges():
            # No loop in the graph can hold the exchange between replicas.
            for position in range(count):
                results = step.run(order[position], results)
        else:
            _, results = tf.while_loop(
                lambda position, _: position < count,
                lambda position, results: (
                    position + 1,
                    step.run(order[position], results),
                ),
                (tf.constant(0), results),
            )
    step.finish(results)
    optimizer.finish_batch()
    batch.track()


class SelectedStep:
    """Forward pass, gradients and update of a group known in the graph."""

    def __init__(self, batch):
        self.batch = batch
        self.model = batch.model
        self.plan = self.model._multi_task.plan
        self.tasks = batch.tasks
        self.names = self.tasks.names
        order = self.tasks.output_names
        self.task_indices = [
            order.index(group[0]) for group in self.plan.groups
        ]
        self.group_of = {
            name: k
            for k, group in enumerate(self.plan.groups)
            for name in group
        }
        self.steps = [GroupStep(batch, k) for k in range(len(self.plan.groups))]
        groups = self.plan.variable_groups
        self.shared = [
            v for v in self.plan.structure.variables if len(groups[id(v)]) > 1
        ]
        self.own = [
            [v for v in self.plan.structure.variables if groups[id(v)] == (k,)]
            for k in range(len(self.plan.groups))
        ]
        shapes = {
            tuple((tuple(v.shape), v.dtype) for v in own) for own in self.own
        }
        self.uniform = len(shapes) == 1
        self.cut = self.plan.structure.cut_for(self.plan.groups)
        # Shared variables that heads use past the cut, as a layer called by
        # several of them.
        in_heads = {
            id(v)
            for head in (self.cut[1] if self.cut else ())
            for v in head.variables
        }
        trunk = self.cut[0] if self.cut else self.model
        self.in_trunk = {id(v) for v in trunk.variables}
        self.direct = [v for v in self.shared if id(v) in in_heads]
        self.blank = batch.blank_predictions()
        # By group, `[groups]`; `True` if nothing can be missing.
        self.labelled = all_flags(
            [batch.any_labelled(group) for group in self.plan.groups]
        )

    def empty(self):
        count = len(self.plan.groups)
        no = tf.zeros([count], tf.bool)
        return {
            "losses": tf.zeros([len(self.names)], keras.backend.floatx()),
            "predictions": dict(self.blank),
            "extra": tf.zeros([], tf.float32),
            "squares": tf.zeros([count], tf.float64),
            "ran": no,
            "finite": tf.ones([count], tf.bool),
        }

    def run(self, chosen, results):
        """One sub-step of group `chosen`; returns the results with its own."""
        if self.plan.structure.depends_on_task:
            # Every group is one task, and the same layers run for it.
            with running_task(tf.gather(self.task_indices, chosen)):
                return self._run(chosen, results)
        return self._run(chosen, results)

    def _run(self, chosen, results):
        trunk_layers, head_layers = self._split_layers()
        with tf.GradientTape() as tape:
            scope = ForwardScope(trunk_layers)
            with scope:
                if self.cut is None:
                    boundary = self.model._forward(self.names, self.batch.x)
                    boundary = [boundary[name] for name in self.names]
                else:
                    boundary = keras.tree.flatten(
                        self.model._run(
                            self.cut[0], self.batch.x, training=True
                        )
                    )
                added = scope.added_losses()
            boundary = [tf.convert_to_tensor(tensor) for tensor in boundary]
            extras = tf.stack(
                [self._trunk_extra(k, added) for k in range(len(self.steps))]
            )
            extra = extras[chosen]
        branches = [
            lambda k=k: self._head(k, boundary, head_layers)
            for k in range(len(self.steps))
        ]
        # A gradient that is not finite shows after the heads have written it.
        head_state = [
            (v, tf.identity(v.value))
            for layers in head_layers
            for layer, _ in layers
            for v in layer.non_trainable_variables
            if not is_seed(v)
        ]
        self.batch.loss_weights.look_up()
        out = tf.switch_case(chosen, branches)
        loss = out["loss"] + tf.cast(extra, out["loss"].dtype)
        shared_gradients = self._gradients(tape, boundary, extra, out)
        del tape
        hit = tf.equal(tf.range(len(self.steps)), chosen)
        tasks_hit = [hit[self.group_of[name]] for name in self.names]
        checked = [loss]
        checked += self.batch.loss_weights.note(
            dict(zip(self.names, tf.unstack(out["losses"]), strict=True)),
            dict(zip(self.names, tasks_hit, strict=True)),
        )
        if not is_loss_scaled(self.model.optimizer):
            checked += list(shared_gradients.values()) + out["own"]
        finite = all_finite(checked)
        labelled = True if self.labelled is True else self.labelled[chosen]
        live = both(labelled, finite)

        def update(k):
            gradients = self._gradients_of(k, shared_gradients, out)
            pairs = [
                (gradients[id(v)], v)
                for v in self.plan.group_variables(k)
                if gradients.get(id(v)) is not None
            ]
            self.model.optimizer.apply_slot(
                self.plan.group_slots[k],
                [g for g, _ in pairs],
                [v for _, v in pairs],
                first_update=self.steps[k].first_update(),
                resting=self.steps[k].resting(),
            )

        # Not one switch: every branch of it would take the inputs of all.
        for k in range(len(self.steps)):
            update_if(
                both(live, tf.equal(chosen, k)),
                lambda k=k: self.batch.watched(k, lambda: update(k)),
                self.plan.group_variables(k) + self.model.optimizer.variables,
            )
        if scope.variables:
            update_if(
                live,
                lambda: scope.commit(
                    lambda tasks: self._is_first(tasks, chosen, results["ran"])
                ),
                scope.variables,
            )
        if head_state:

            def roll_back():
                for variable, before in head_state:
                    variable.assign(before)

            tf.cond(live, lambda: None, roll_back)
        return {
            "losses": tf.where(
                tf.stack(tasks_hit), out["losses"], results["losses"]
            ),
            "predictions": {
                name: tf.where(
                    taken,
                    out["predictions"][name],
                    results["predictions"][name],
                )
                for name, taken in zip(self.names, tasks_hit, strict=True)
            },
            "extra": results["extra"]
            + tf.where(live, tf.cast(extra + out["extra"], tf.float32), 0.0),
            "squares": tf.where(hit, out["squares"], results["squares"]),
            "ran": results["ran"] | (hit & live),
            "finite": tf.where(hit, finite, results["finite"]),
        }

    def _gradients(self, tape, boundary, extra, out):
        """Gradients by variable id: through the boundary plus the head's."""
        own = [v for variables in self.own for v in variables]
        # Nested models may hold a task's own variables in the trunk.
        sources = self.shared + [v for v in own if id(v) in self.in_trunk]
        scale = tf.cast(out["scale"], extra.dtype)
        through = tape.gradient(
            [*boundary, extra],
            sources,
            output_gradients=[*out["boundary"], scale],
        )
        gradients = {
            id(v): g
            for v, g in zip(sources, through, strict=True)
            if g is not None
        }
        for v, g in zip(self.direct, out["direct"], strict=True):
            if id(v) in gradients:
                g = g + tf.convert_to_tensor(gradients[id(v)])
            gradients[id(v)] = g
        return gradients

    def _gradients_of(self, k, gradients, out):
        gradients = dict(gradients)
        own = (
            self.own[k] if self.uniform else [v for vs in self.own for v in vs]
        )
        for v, g in zip(own, out["own"], strict=True):
            if id(v) in gradients:
                g = g + tf.convert_to_tensor(gradients[id(v)])
            gradients[id(v)] = g
        return gradients

    def _is_first(self, tasks, chosen, ran):
        """Whether group `chosen` is the first to run one of the tasks."""
        uses = tf.stack(
            [
                tf.convert_to_tensor(step.labelled_in(k, tasks))
                for k, step in enumerate(self.steps)
            ]
        )
        return uses[chosen] & ~tf.reduce_any(uses & ran)

    def _split_layers(self):
        if self.cut is None:
            return self.plan.structure.layer_tasks, [[] for _ in self.steps]
        trunk = {id(operation) for operation in self.cut[0]._flatten_layers()}
        layers = self.plan.structure.layer_tasks
        heads = [
            [
                (layer, tasks)
                for layer, tasks in layers
                if id(layer) not in trunk and any(n in tasks for n in group)
            ]
            for group in self.plan.groups
        ]
        return [
            (layer, tasks) for layer, tasks in layers if id(layer) in trunk
        ], heads

    def _trunk_extra(self, k, added):
        """Group `k`'s share of what the trunk adds to the loss."""
        step = self.steps[k]
        # One group updates in this batch, so it carries the trunk's terms
        # alone; in an order, the groups with labels share them.
        alone = self.model._multi_task.strategy.one_group_per_step
        terms = [
            value if alone else step.share(tasks, value)
            for tasks, value in added
            if any(name in tasks for name in step.names)
        ]
        for variable in self.shared:
            tasks = self.plan.variable_tasks[id(variable)]
            reached = any(name in tasks for name in step.names)
            if variable.regularizer is not None and reached:
                value = variable.regularizer(variable)
                terms.append(value if alone else step.share(tasks, value))
        if not terms:
            return tf.zeros([], tf.float32)
        extra = tf.add_n([tf.cast(term, tf.float32) for term in terms])
        return extra / num_replicas()

    def _head(self, k, boundary, head_layers):
        """Branch `k`: its head, its loss and the gradients at the boundary."""
        batch, names = self.batch, self.plan.groups[k]
        variables = self.own[k] + self.direct
        with tf.GradientTape() as tape:
            tape.watch(boundary)
            scope = ForwardScope(head_layers[k])
            with scope:
                predictions = self._outputs(k, boundary)
                losses = {
                    name: batch.labels.loss(name, predictions[name])
                    for name in names
                }
                added = [value for _, value in scope.added_losses()]
            regularizers = [
                v.regularizer(v)
                for v in self.own[k]
                if v.regularizer is not None
            ]
            own_extra = [tf.cast(t, tf.float32) for t in added + regularizers]
            extra = tf.add_n(own_extra) if own_extra else tf.constant(0.0)
            extra = extra / num_replicas()
            weights = batch.loss_weights
            weighted = weights.by_latest(weights.by_constants(losses))
            loss = batch.total(weighted)
            loss = loss + tf.cast(extra, loss.dtype)
            optimizer, slot = self.model.optimizer, self.plan.group_slots[k]
            scaled = optimizer.scale_loss(loss, slot)
        taken = tape.gradient(scaled, [*boundary, *variables])
        at_boundary = [
            tf.zeros_like(b) if g is None else g
            for b, g in zip(boundary, taken, strict=False)
        ]
        by_id = dict(
            zip(map(id, variables), taken[len(boundary) :], strict=True)
        )
        scope.commit(lambda tasks: self.steps[k].labelled_in(k, tasks))
        scale = optimizer.scale_loss(tf.ones([]), slot)
        return {
            "loss": loss,
            "squares": self._squares(names[0], at_boundary, scale),
            "losses": tf.stack(
                [
                    losses.get(n, tf.zeros([], keras.backend.floatx()))
                    for n in self.names
                ]
            ),
            "predictions": {
                name: predictions.get(name, self.blank[name])
                for name in self.names
            },
            "extra": extra,
            "scale": scale,
            "boundary": at_boundary,
            "own": self._dense(
                self.own[k]
                if self.uniform
                else [v for vs in self.own for v in vs],
                by_id,
            ),
            "direct": self._dense(self.direct, by_id),
        }

    def _squares(self, name, gradients, scale):
        """Squared length of a task's gradient, for balancers that ask."""
        if self.batch.gradient_norms is None:
            return tf.zeros([], tf.float64)
        features = [
            gradient
            for gradient, tensor in zip(
                gradients, self.cut[0].outputs, strict=True
            )
            if gradient.dtype.is_floating and not is_input(tensor)
        ]
        weight = self.batch.loss_weights.latest[name]
        return self.batch.gradient_norms.squared_length(
            features, weight * tf.cast(scale, weight.dtype)
        )

    def _outputs(self, k, boundary):
        if self.cut is None:
            outputs = dict(zip(self.names, boundary, strict=True))
            return {name: outputs[name] for name in self.plan.groups[k]}
        head = self.cut[1][k]
        return self.model._run(
            head, [boundary[i] for i in head.positions], training=True
        )

    @staticmethod
    def _dense(variables, gradients):
        """All branches of a switch return tensors of the same shapes."""
        return [
            tf.zeros(v.shape, v.dtype)
            if gradients.get(id(v)) is None
            else tf.convert_to_tensor(gradients[id(v)])
            for v in variables
        ]

    def finish(self, results):
        """Hands the results to the batch."""
        batch = self.batch
        batch.extra.append(results["extra"])
        if batch.gradient_norms is not None:
            squares = sum_over_replicas(results["squares"])
            squares = tf.unstack(squares)
            batch.gradient_norms.squares = {
                name: squares[self.group_of[name]] for name in self.names
            }
        losses = tf.unstack(results["losses"])
        for name, loss in zip(self.names, losses, strict=True):
            k = self.group_of[name]
            batch.losses[name] = loss
            batch.predictions[name] = results["predictions"][name]
            batch.ran[name] = both(batch.labelled[name], results["ran"][k])
            batch.finite[name] = results["finite"][k]
