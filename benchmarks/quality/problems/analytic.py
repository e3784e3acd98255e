"""Problems without data: the losses are functions of a point."""

import json

import keras
import numpy as np
import tensorflow as tf

import mtlkeras
from benchmarks.quality import objects

PARTS = 10


class Point(keras.layers.Layer):
    """Its output is its weight, for one row of input."""

    def __init__(self, size):
        super().__init__(dtype="float64")
        self.size = size

    def build(self, input_shape):
        self.point = self.add_weight(shape=(self.size,), dtype="float64")

    def call(self, inputs):
        return self.point[None] + 0 * inputs


class AnalyticProblem:
    """A problem whose model is a point and whose steps run in one graph.

    The model is a `MultiTaskModel`, its steps are those of `fit`, compiled as
    one loop: tens of microseconds each. A subclass has `losses`, a dict from
    task to a function of a point `[size]`, and `measure`.

    Attributes that a subclass sets:
        size: Of the point.
        losses: Dict from task to its loss.
        metrics: Dict from metric to its task and direction.
        positive: Whether the losses are.
        optimizer: That of all methods which name none.
    """

    size = 2
    positive = True
    optimizer = {"class_name": "Adam", "config": {"epsilon": 1e-8}}

    def __init__(self):
        self._compiled = None, None

    @staticmethod
    def missing_data(**arguments):
        return None

    @property
    def task_names(self):
        return tuple(self.losses)

    def start(self, setting):
        """The first point, an array `[size]`."""
        raise NotImplementedError

    def measure(self, point):
        """Dict from metric to value, for the last point."""
        raise NotImplementedError

    def run(self, method, cell):
        setting = cell["setting"]
        model, train, before = self.compiled(method, cell)
        for variable, value in before:
            variable.assign(value)
        for rule in (model.balancer, model.aggregator):
            if rule is not None:
                rule.reset_state()
        (point,) = model.trainable_variables
        point.assign(self.start(setting))
        model.optimizer.learning_rate = setting["learning_rate"] * method.get(
            "learning_rate_factor", 1.0
        )
        # In parts: what is undefined need not run to the end.
        whole, rest = divmod(setting["rounds"], PARTS)
        for part in range(PARTS):
            train(tf.constant(whole + (part < rest)))
            if model.balancer is not None:
                model.balancer.raise_if_negative()
        found = self.measure(keras.ops.convert_to_numpy(point))
        return {
            "test": {k: float(np.round(v, 12)) for k, v in found.items()},
            "steps": setting["rounds"],
        }

    def compiled(self, method, cell):
        """The model of a method, its loop, and what its variables were."""
        key = json.dumps([method, cell["seed"]], sort_keys=True)
        if key != self._compiled[0]:
            keras.backend.clear_session()
            keras.utils.set_random_seed(cell["seed"])
            model = self.build(method, cell)
            train = self.make_loop(model)
            # Some state is made in the first step.
            train(tf.constant(0))
            variables = {
                id(v): v for v in model.variables + model.optimizer.variables
            }
            before = [(v, v.numpy()) for v in variables.values()]
            self._compiled = key, (model, train, before)
        return self._compiled[1]

    def build(self, method, cell):
        if {"roaming", "callbacks", "separate"} & set(method):
            raise ValueError("Not for a problem without network and epochs.")
        inputs = keras.Input((self.size,), dtype="float64")
        point = Point(self.size)(inputs)
        model = mtlkeras.MultiTaskModel(
            inputs,
            {
                name: keras.layers.Identity(name=name, dtype="float64")(point)
                for name in self.task_names
            },
        )
        model.compile(
            objects.make_optimizer(method, self.optimizer, cell["setting"]),
            {n: of_point(loss, n) for n, loss in self.losses.items()},
            **objects.compile_arguments(
                method, cell["setting"], self.task_names, cell["seed"]
            ),
        )
        rule = model.aggregator
        if rule and rule.requires_positive_losses and not self.positive:
            raise ValueError(
                f"{type(rule).__name__} needs positive losses, which those of "
                "this problem are not."
            )
        return model

    def make_loop(self, model):
        zeros = tf.zeros((1, self.size), "float64")
        batch = zeros, dict.fromkeys(self.task_names, zeros)

        @tf.function(jit_compile=True, autograph=False)
        def train(rounds):
            def one_round(number):
                model.train_step(batch)
                return number + 1

            tf.while_loop(
                lambda number: number < rounds, one_round, [tf.constant(0)]
            )

        return train


def of_point(function, name):
    """A Keras loss that ignores the labels."""

    def loss(_, point):
        return function(point[0])[None]

    loss.__name__ = f"{name}_loss"
    return loss
