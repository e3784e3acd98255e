"""Problems with data: a network, trained with the best epoch kept."""

import time

import keras
import numpy as np
import tensorflow as tf

import mtlkeras
from benchmarks.quality import objects


class TrainedProblem:
    """A problem whose methods train a network on the same batches.

    For one seed all methods have the same first weights and see the same
    batches in the same order. After every epoch the validation set is scored;
    the weights of the best epoch are kept.

    The score, lower is better, is the mean over tasks of the mean over a
    task's metrics, each divided by what a constant predictor gets, so that 1
    is "has learned nothing". It belongs to no method and needs no baseline.

    A subclass sets:
        losses: Dict from task to a Keras loss.
        metrics: Dict from metric to `{"task": ..., "higher_is_better": ...}`.
        data: Three pairs `(x, y)` for training, validation and test, `y` a
            dict from task to labels.
        build: Method `(setting, tasks)` that returns inputs and a dict of
            outputs.
        measure: Method `(task, labels, outputs)` that returns a dict with the
            task's metrics; lower is better in all of them.
        constant: Method `(task, train labels, labels)`: the outputs of the
            best constant, as `measure` takes them.

    Args:
        epochs: At most so many.
        batch_size: Rows per batch.
        patience: Epochs without a better score after which training stops.
        passes: Passes over the rows that count as one epoch.
    """

    optimizer = {"class_name": "AdamW"}
    predict_size = 500

    def __init__(self, epochs, batch_size, patience, passes=1):
        self.passes = passes
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self._worst = None

    @staticmethod
    def missing_data(**arguments):
        """Why the data are not here and how to get them, or `None`."""
        return None

    @property
    def task_names(self):
        return tuple(self.losses)

    @property
    def worst(self):
        """Metrics of the best constant on the validation set."""
        if self._worst is None:
            train, validation = self.data[0][1], self.data[1][1]
            self._worst = {}
            for task in self.task_names:
                labels = validation[task]
                guess = self.constant(task, train[task], labels)
                self._worst.update(self.measure(task, labels, guess))
        return self._worst

    def score(self, metrics, tasks):
        means = [
            np.mean(
                [
                    metrics[name] / self.worst[name]
                    for name, about in self.metrics.items()
                    if about["task"] == task
                ]
            )
            for task in tasks
        ]
        return float(np.mean(means))

    def evaluate(self, model, split, tasks):
        x, y = self.data[split]
        outputs = model.predict(x, batch_size=self.predict_size, verbose=0)
        found = {}
        for task in tasks:
            found.update(self.measure(task, y[task], outputs[task]))
        return {name: float(value) for name, value in found.items()}

    def run(self, method, cell):
        keras.backend.clear_session()
        keras.utils.set_random_seed(cell["seed"])
        tf.config.experimental.enable_op_determinism()
        model = self.compile(method, cell)
        keeper = BestEpoch(self, cell["tasks"])
        rows = len(next(iter(self.data[0][1].values())))
        steps = rows // self.batch_size * self.passes
        model.fit(
            self.batches(cell, rows),
            epochs=self.epochs,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[*objects.make_callbacks(method), keeper],
        )
        found = {
            "steps": steps * len(keeper.seconds),
            "samples": steps * len(keeper.seconds) * self.batch_size,
            "training_seconds": round(keeper.training_seconds(), 3),
        }
        if keeper.weights is None:
            return found
        model.set_weights(keeper.weights)
        found["score"] = keeper.score
        found["epoch"] = keeper.epoch
        found["validation"] = keeper.metrics
        if cell["stage"] == "test":
            found["test"] = self.evaluate(model, 2, cell["tasks"])
        return found

    def compile(self, method, cell):
        setting, tasks = cell["setting"], cell["tasks"]
        inputs, outputs = self.build(setting, tasks)
        if "roaming" in method:
            model = mtlkeras.MultiTaskModel.with_roaming(
                keras.Model(inputs, outputs),
                seed=cell["seed"],
                **method["roaming"],
            )
        else:
            model = mtlkeras.MultiTaskModel(inputs, outputs)
        model.compile(
            objects.make_optimizer(method, self.optimizer, setting),
            {task: self.losses[task] for task in tasks},
            **objects.compile_arguments(method, setting, tasks, cell["seed"]),
        )
        return model

    def batches(self, cell, rows):
        """Batches of all epochs, in an order that only the seed decides."""
        generator = np.random.default_rng([cell["seed"], 7])
        whole = rows // self.batch_size * self.batch_size
        order = np.concatenate(
            [
                generator.permutation(rows)[:whole]
                for _ in range(self.epochs * self.passes)
            ]
        )
        x, y = self.data[0]
        x = tf.nest.map_structure(tf.constant, x)
        y = {task: tf.constant(y[task]) for task in cell["tasks"]}

        def take(indices):
            return tf.nest.map_structure(
                lambda values: tf.gather(values, indices), (x, y)
            )

        chosen = tf.data.Dataset.from_tensor_slices(order)
        return chosen.batch(self.batch_size, drop_remainder=True).map(take)


class BestEpoch(keras.callbacks.Callback):
    """Scores every epoch, keeps the best one and stops when none comes."""

    def __init__(self, problem, tasks):
        super().__init__()
        self.problem = problem
        self.tasks = tasks
        self.score = self.weights = self.metrics = self.epoch = None
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.process_time() - self._started)
        metrics = self.problem.evaluate(self.model, 1, self.tasks)
        score = self.problem.score(metrics, self.tasks)
        if np.isfinite(score) and (self.score is None or score < self.score):
            self.score, self.metrics, self.epoch = score, metrics, epoch
            self.weights = self.model.get_weights()
        waited = epoch - (0 if self.epoch is None else self.epoch)
        if waited >= self.problem.patience:
            self.model.stop_training = True

    def training_seconds(self):
        """Of all epochs, the first one, which traces, taken as the others."""
        later = self.seconds[1:] or self.seconds
        return float(np.mean(later)) * len(self.seconds)
