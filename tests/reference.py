"""What every strategy must compute, with nothing but stock Keras.

A plain `keras.Model`, a gradient tape, one stock optimizer per slot and NumPy
for the history: the rules written down a second time, one operation after the
other, on the labelled rows alone.
"""

import affinity
import keras
import numpy as np
import tensorflow as tf


class Reference:
    """Trains a stock model by the visits of a case.

    For models of `nets.mlp` (mean squared error, "mae" as metric).

    Args:
        case: A `cases.Case`.
        model: A functional `keras.Model` with a dict of outputs.
        optimizer: Function that makes a stock optimizer.
        loss_weights: Dict from task to number.
    """

    def __init__(self, case, model, optimizer, loss_weights=None):
        self.case = case
        self.model = model
        self.tasks = tuple(model.output)
        self.make_optimizer = optimizer
        self.loss_weights = loss_weights or {}
        self.strategy = case.strategy()
        self.optimizers = {}
        self.step = self.draw = 0
        self.groups = None
        self.measures = self.strategy.regroups == "measured"
        if self.measures:
            self.groups = tuple((name,) for name in self.tasks)
            self.affinity = np.zeros((len(self.tasks), len(self.tasks)))
        self.begin_epoch()

    def begin_epoch(self):
        self.squared = {name: [] for name in self.tasks}
        self.absolute = {name: [] for name in self.tasks}
        self.extra = []

    def end_epoch(self):
        """The epoch's logs, as Keras would name them."""
        self.draw = self.step
        if self.measures and self.strategy.regroup == "epoch":
            self._form_groups()
        logs = {}
        for name in self.tasks:
            ran = self.squared[name]
            logs[f"{name}_loss"] = (
                np.mean(np.concatenate(ran)) if ran else float("nan")
            )
            if ran:
                logs[f"{name}_mae"] = np.mean(
                    np.concatenate(self.absolute[name])
                )
        logs["loss"] = sum(
            self.loss_weights.get(name, 1.0) * logs[f"{name}_loss"]
            for name in self.tasks
            if self.squared[name]
        ) + np.mean(self.extra or [0.0])
        self.begin_epoch()
        return logs

    def train_batch(self, x, y):
        labelled = {n: not np.isnan(y[n]).all() for n in self.tasks}
        visits = [
            (slot, names, [n for n in names if labelled[n]])
            for slot, names in self.case.visits(
                self.tasks,
                self.step,
                self.draw,
                self.groups,
                np.array(list(labelled.values())),
            )
        ]
        visits = [visit for visit in visits if visit[2]]
        self.step += 1
        self.extra.append(0.0)
        if self.strategy.at_same_weights:
            taken = [self._gradients(x, y, v, visits) for v in visits]
            for visit, gradients in zip(visits, taken, strict=True):
                self._apply(visit, gradients)
            return
        for visit in visits:
            before = self._losses(x, y) if self.measures else None
            self._apply(visit, self._gradients(x, y, visit, visits))
            if self.measures:
                self.affinity = affinity.credited(
                    self.affinity,
                    before,
                    self._losses(x, y),
                    [name in visit[2] for name in self.tasks],
                    self.strategy.decay,
                )
        if self.measures and self.strategy.regroup != "epoch":
            if self.step % self.strategy.regroup == 0:
                self._form_groups()

    def _losses(self, x, y):
        """Of every task, NaN where it has no labels."""
        outputs = self.model(x, training=True)
        errors = {n: outputs[n].numpy() - y[n] for n in self.tasks}
        return [
            np.nanmean(errors[n] ** 2) if (~np.isnan(y[n])).any() else np.nan
            for n in self.tasks
        ]

    def _form_groups(self):
        if self.step >= self.strategy.warmup:
            self.groups = affinity.groups(
                self.affinity, self.tasks, self.strategy.preference
            )

    def fit(self, x, y, batch_size, epochs):
        logs = []
        for _ in range(epochs):
            for start in range(0, len(x), batch_size):
                rows = slice(start, start + batch_size)
                self.train_batch(x[rows], {k: v[rows] for k, v in y.items()})
            logs.append(self.end_epoch())
        return {key: [log.get(key) for log in logs] for key in logs[0]}

    def own(self, name):
        return self.model.get_layer(f"head_{name}").trainable_variables

    def shared(self):
        heads = {id(v) for name in self.tasks for v in self.own(name)}
        return [v for v in self.model.trainable_variables if id(v) not in heads]

    def _gradients(self, x, y, visit, visits):
        _, names, labelled = visit
        variables = self.shared() + [v for n in labelled for v in self.own(n)]
        if self.strategy.updates_jointly:
            variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(x, training=True)
            total = 0.0
            for name in labelled:
                rows = ~np.isnan(y[name]).any(axis=-1)
                error = tf.boolean_mask(outputs[name], rows) - y[name][rows]
                loss = tf.reduce_mean(tf.square(error))
                total += self.loss_weights.get(name, 1.0) * loss
                self.squared[name].append(np.square(error.numpy()).ravel())
                self.absolute[name].append(np.abs(error.numpy()).ravel())
            extra = 0.0
            # A group's own terms count with it; a resting head stays all the
            # same, since it is not among the variables.
            heads = [v for name in names for v in self.own(name)]
            for v in self.shared() + heads:
                if v.regularizer is not None:
                    is_shared = any(v is s for s in self.shared())
                    extra += v.regularizer(v) / (
                        len(visits) if is_shared else 1
                    )
            self.extra[-1] += float(extra)
            total += extra
        gradients = tape.gradient(total, variables)
        return [
            (tf.zeros_like(v) if g is None else g, v)
            for g, v in zip(gradients, variables, strict=True)
        ]

    def _apply(self, visit, pairs):
        slot, _, labelled = visit
        if not self.strategy.task_slots:
            slot = "one"
        if self.strategy.regroups == "never":
            return self._update(slot, pairs)
        heads = {id(v): n for n in labelled for v in self.own(n)}
        self._update(slot, [p for p in pairs if id(p[1]) not in heads])
        for name in labelled:
            self._update(
                name, [p for p in pairs if heads.get(id(p[1])) == name]
            )

    def _update(self, slot, pairs):
        if slot not in self.optimizers:
            self.optimizers[slot] = self.make_optimizer()
            self.optimizers[slot].build(self.model.trainable_variables)
        self.optimizers[slot].apply(*map(list, zip(*pairs, strict=True)))


def stock(model, tasks=None):
    """A stock model with the layers' weights of another, or some outputs."""
    outputs = model.output
    if tasks is not None:
        outputs = {name: outputs[name] for name in tasks}
    return keras.Model(model.input, outputs)
