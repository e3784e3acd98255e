"""The two nets of the benchmarks, their data, and what is measured of them."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

import mtlkeras
from benchmarks.speed import bare

BATCH_SIZE = {"mlp": 256, "conv": 64}
AT_FEATURES, LOW_MEMORY = " at features", ", low memory"
AGGREGATOR_MODES = {
    "": {},
    AT_FEATURES: {"gradients_at": "features"},
    LOW_MEMORY: {"memory": "low"},
}
INPUT_SHAPE = {"mlp": (128,), "conv": (32, 32, 3)}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One model with one way to train it.

    Attributes:
        heads: How many tasks the model has.
        strategy: A strategy, or `None` for a stock `keras.Model`.
        fused: Whether the fused apply may be used.
        aggregator: An aggregator, or `None`.
        balancer: A balancer, or `None`.
        roaming: Whether each task uses its own units of the shared layers.
        does: `"train"`; `"forward"`, the forward pass and the loss;
            `"backward"`, the forward pass and a backward pass for every task;
            `"weighted"` and `"weighted features"`, what any rule does (see
            `bare.weighted_step`).
    """

    heads: int
    strategy: object = None
    fused: bool = True
    aggregator: object = None
    balancer: object = None
    roaming: bool = False
    does: str = "train"


def task_names(heads):
    return [f"task_{t:02}" for t in range(heads)]


def configurations(tasks):
    """All configurations for a number of tasks, by name."""
    strategies = mtlkeras.strategies
    groups = num_groups(tasks)
    dealt = [task_names(tasks)[k::groups] for k in range(groups)]
    ours = {
        "joint": strategies.Joint(),
        "alternating": strategies.Alternating(),
        "grouped": strategies.Grouped(dealt),
        "random_groups": strategies.RandomGroups(groups, seed=0),
        "random_groups, new each step": strategies.RandomGroups(
            groups, resample="step", seed=0
        ),
        "multi_adaptive": strategies.MultiAdaptive(),
        "round_robin": strategies.RoundRobin(),
        "sampled": strategies.Sampled(seed=0),
    }
    found = {
        "stock, all heads": Configuration(tasks),
        "stock, T/K heads": Configuration(tasks // groups),
        "stock, one head": Configuration(1),
        "stock, one head, forward": Configuration(1, does="forward"),
        "forward, T backward": Configuration(tasks, does="backward"),
        "bare": Configuration(tasks, does="weighted"),
        "bare at features": Configuration(tasks, does="weighted features"),
    }
    for name, strategy in ours.items():
        found[name] = Configuration(tasks, strategy)
    found["alternating, Keras's apply"] = Configuration(
        tasks, strategies.Alternating(), fused=False
    )
    for name in ("alternating", "joint"):
        found[f"{name}, roaming"] = Configuration(
            tasks, ours[name], roaming=True
        )
    found["forward"] = Configuration(tasks, does="forward")
    for id in mtlkeras.balancers.ids():
        found[id] = Configuration(
            tasks, strategies.Joint(), balancer=mtlkeras.balancers.get(id)
        )
    found["famo, same batch"] = Configuration(
        tasks,
        strategies.Joint(),
        balancer=mtlkeras.balancers.FAMO(same_batch=True),
    )
    found["gradnorm, last shared layer"] = Configuration(
        tasks,
        strategies.Joint(),
        balancer=mtlkeras.balancers.GradNorm(norms_at="last_shared_layer"),
    )
    for id in mtlkeras.aggregators.ids():
        cls = type(mtlkeras.aggregators.get(id))
        for suffix, arguments in AGGREGATOR_MODES.items():
            if suffix == AT_FEATURES and not cls.allows_features:
                continue
            if suffix == LOW_MEMORY and cls.needs_rows:
                continue
            found[id + suffix] = Configuration(
                tasks, strategies.Joint(), aggregator=cls(**arguments)
            )
    return found


def num_groups(tasks):
    return min(4, tasks)


def build_outputs(net, heads):
    """Inputs and a dict of linear heads on the net's trunk."""
    layers = keras.layers
    inputs = x = keras.Input(INPUT_SHAPE[net])
    if net == "mlp":
        for _ in range(3):
            x = layers.Dense(512, activation="relu")(x)
    else:
        for filters, strides in ((32, 1), (64, 2), (128, 2), (128, 2)):
            x = layers.Conv2D(
                filters, 3, strides, padding="same", activation="relu"
            )(x)
        x = layers.GlobalAveragePooling2D()(x)
    return inputs, {n: layers.Dense(1, name=n)(x) for n in task_names(heads)}


def build_model(net, configuration):
    """A compiled model: stock Keras, or ours with its strategy."""
    keras.utils.set_random_seed(0)
    inputs, outputs = build_outputs(net, configuration.heads)
    optimizer = keras.optimizers.Adam(1e-4)
    loss = dict.fromkeys(outputs, "mse")
    if configuration.strategy is None:
        model = keras.Model(inputs, outputs)
        model.compile(optimizer, loss)
        return model
    if not configuration.fused:
        optimizer = mtlkeras.optimizers.PerTaskOptimizer(optimizer, fused=False)
    if configuration.roaming:
        model = mtlkeras.MultiTaskModel.with_roaming(
            keras.Model(inputs, outputs), dense=True, seed=0
        )
    else:
        model = mtlkeras.MultiTaskModel(inputs, outputs)
    model.compile(
        optimizer,
        loss,
        strategy=configuration.strategy,
        aggregator=configuration.aggregator,
        balancer=configuration.balancer,
    )
    return model


def build_step(net, configuration):
    """A model and the compiled function that `fit` calls once per batch.

    The data set repeats one batch that is in memory: what reads the data costs
    all configurations the same, and next to nothing.

    Returns:
        `(model, step)`, a compiled model and a function without arguments.
    """
    model = build_model(net, configuration)
    generator = np.random.default_rng(0)
    rows = BATCH_SIZE[net]
    x = generator.normal(size=(rows, *INPUT_SHAPE[net])).astype("float32")
    y = {
        name: generator.normal(size=(rows, 1)).astype("float32")
        for name in task_names(configuration.heads)
    }
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    if configuration.does == "train":
        model.make_train_function()
        function = model.train_function
    elif configuration.does == "forward":
        model.make_test_function()
        function = model.test_function
    elif configuration.does == "backward":
        function = bare.backward_passes(model)
    else:
        function = bare.weighted_step(
            model,
            trunk_output=model.get_layer(model.output_names[0]).input,
            at_features=configuration.does == "weighted features",
        )
    return model, lambda: function(batches)


def slot_bytes(model):
    """Measured and predicted bytes of a model's Adam moments.

    Returns:
        `(measured, predicted)`; predicted is 4 bytes times
        `2 (K P_shared + sum of P_head)` for K groups with slots.
    """
    measured = sum(
        int(np.prod(v.shape)) * v.dtype.size
        for v in (tf.convert_to_tensor(v) for v in model.optimizer.variables)
        if v.shape.rank
    )
    if not isinstance(model, mtlkeras.MultiTaskModel):
        shared, heads, slots = model.trainable_variables, [], 1
    else:
        strategy = model.update_strategy
        slots = 1 if strategy.updates_jointly else len(strategy.groups)
        shared = model.shared_variables
        heads = [v for n in model.task_names for v in model.task_variables(n)]
    count = slots * _elements(shared) + _elements(heads)
    return measured, 4 * 2 * count


def _elements(variables):
    return sum(int(np.prod(v.shape)) for v in variables)
