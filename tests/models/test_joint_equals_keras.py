"""`strategy="joint"` is stock Keras: the same bits, keys and logs."""

import keras
import numpy as np
import pytest
from nets import TASKS, assert_same_bits, losses, mlp, regression_data, values

import mtlkeras

# Two batches, of 8 and of 4.
ROWS, FEATURES = 12, 6


def assert_same_logs(mine, stock):
    """Equal keys in equal order and equal bits; NaN equals NaN."""
    assert list(mine) == list(stock)
    for key, value in stock.items():
        np.testing.assert_array_equal(mine[key], value, err_msg=key)


def assert_same_training(mine, stock):
    assert_same_bits(values(mine.weights), values(stock.weights))
    assert len(stock.optimizer.variables) > 2
    assert_same_bits(
        values(mine.optimizer.variables), values(stock.optimizer.variables)
    )


def train(model, x, y, compile, **fit):
    """Fits a model; `compile` is a function, so that no object is shared.

    Eagerly unless told otherwise: that takes a third of the time.
    """
    defaults = {"optimizer": "adam", "run_eagerly": True}
    model.compile(**{**defaults, **compile()})
    keras.utils.set_random_seed(1)
    defaults = {"batch_size": 8, "verbose": 0}
    return model.fit(x, y, **{**defaults, **fit}).history


def compare(build, x, y, compile, **fit):
    """Trains a stock model and ours; returns both."""
    stock, mine = build(keras.Model), build(mtlkeras.MultiTaskModel)
    assert_same_bits(values(mine.weights), values(stock.weights))
    before = values(mine.weights)
    expected = train(stock, x, y, compile, **fit)
    history = train(mine, x, y, compile, **fit)
    assert any(
        (a != b).any()
        for a, b in zip(before, values(mine.weights), strict=True)
    )
    assert_same_logs(history, expected)
    assert_same_training(mine, stock)
    return mine, stock


def in_structure(y, structure):
    return {
        "dict": y,
        "list": list(y.values()),
        "single": next(iter(y.values())),
    }[structure]


FORMS = {
    # outputs, loss
    "dict": ("dict", lambda: losses()),
    # The order in which losses are added up is that of the loss dict.
    "dict_loss_in_other_order": (
        "dict",
        lambda: dict(reversed(losses().items())),
    ),
    "dict_mixed_losses": (
        "dict",
        lambda: {
            "left": "mse",
            "middle": keras.losses.Huber(),
            "right": keras.losses.mean_absolute_error,
        },
    ),
    "dict_output_without_loss": ("dict", lambda: losses(TASKS[:2])),
    "list": ("list", lambda: ["mse", "mae", keras.losses.LogCosh()]),
    "list_dict_loss": ("list", lambda: losses()),
    "list_one_loss_for_all": ("list", lambda: "mse"),
    "single": ("single", lambda: "mse"),
}


# As Keras warns of an output without a loss.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    structure, loss = FORMS[form]
    x, y = regression_data(rows=ROWS)
    y = in_structure(y, structure)
    if form == "dict_output_without_loss":
        y = {name: y[name] for name in TASKS[:2]}
    mine, stock = compare(
        lambda cls: mlp(cls, structure=structure),
        x,
        y,
        lambda: {"loss": loss()},
        validation_split=0.25,
    )
    expected, predicted = (
        stock.predict(x, verbose=0),
        mine.predict(x, verbose=0),
    )
    assert type(predicted) is type(expected)
    if isinstance(expected, dict):
        assert list(predicted) == list(expected)
    assert_same_bits(
        keras.tree.flatten(predicted), keras.tree.flatten(expected)
    )


@pytest.mark.parametrize("structure", ["dict", "list", "single"])
def test_on_batch_evaluate_and_predict(structure):
    def compile_arguments():
        if structure == "single":
            return {"loss": "mse", "metrics": ["mae"]}
        metrics = {name: ["mae"] for name in TASKS}
        return {
            "loss": losses() if structure == "dict" else ["mse"] * 3,
            "metrics": metrics
            if structure == "dict"
            else list(metrics.values()),
        }

    x, y = regression_data(rows=ROWS)
    y = in_structure(y, structure)
    stock = mlp(keras.Model, structure=structure)
    mine = mlp(mtlkeras.MultiTaskModel, structure=structure)
    for model in (stock, mine):
        model.compile("adam", run_eagerly=True, **compile_arguments())
    for _ in range(2):
        assert_same_logs(
            mine.train_on_batch(x, y, return_dict=True),
            stock.train_on_batch(x, y, return_dict=True),
        )
    assert mine.train_on_batch(x, y) == stock.train_on_batch(x, y)
    assert mine.test_on_batch(x, y) == stock.test_on_batch(x, y)
    assert_same_logs(
        mine.test_on_batch(x, y, return_dict=True),
        stock.test_on_batch(x, y, return_dict=True),
    )
    expected = stock.evaluate(x, y, batch_size=8, verbose=0)
    assert mine.evaluate(x, y, batch_size=8, verbose=0) == expected
    assert len(expected) > 1
    assert_same_logs(
        mine.evaluate(x, y, verbose=0, return_dict=True),
        stock.evaluate(x, y, verbose=0, return_dict=True),
    )
    assert_same_bits(
        keras.tree.flatten(mine.predict_on_batch(x)),
        keras.tree.flatten(stock.predict_on_batch(x)),
    )
    assert_same_training(mine, stock)


def row_weights(seed):
    return np.random.default_rng(seed).uniform(0.1, 2, ROWS).astype("float32")


WEIGHTS = {
    "array": lambda: row_weights(0),
    "dict": lambda: {name: row_weights(i) for i, name in enumerate(TASKS)},
    # A zero weight for a row, with others in the batch that count.
    "dict_some_zero": lambda: {
        name: np.where(np.arange(ROWS) % 3 == i, 0, row_weights(i)).astype(
            "float32"
        )
        for i, name in enumerate(TASKS)
    },
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sample_weights(weights):
    x, y = regression_data(rows=ROWS)
    weights = WEIGHTS[weights]()
    mine, stock = compare(
        mlp,
        x,
        y,
        lambda: {
            "loss": losses(),
            "metrics": {"left": ["mae"]},
            "weighted_metrics": {"left": ["mse"], "right": ["mae", "mse"]},
        },
        sample_weight=weights,
        validation_data=(x, y, weights),
    )
    assert_same_logs(
        mine.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True),
        stock.evaluate(
            x, y, sample_weight=weights, verbose=0, return_dict=True
        ),
    )


@pytest.mark.parametrize("structure", ["list", "single"])
def test_sample_weights_of_other_structures(structure):
    x, y = regression_data(rows=ROWS)
    weights = [row_weights(i) for i in range(3)]
    compare(
        lambda cls: mlp(cls, structure=structure),
        x,
        in_structure(y, structure),
        lambda: {
            "loss": ["mse", "mae", "mse"] if structure == "list" else "mse",
            "weighted_metrics": [["mae"]] * 3
            if structure == "list"
            else ["mae"],
        },
        sample_weight=weights if structure == "list" else weights[0],
    )


LOSS_WEIGHTS = {
    "dict": ("dict", {"left": 0.3, "middle": 1.0, "right": 7.0}),
    "list": ("list", [0.3, 1.0, 7.0]),
    "single": ("single", 0.3),
}


@pytest.mark.parametrize("case", LOSS_WEIGHTS)
def test_loss_weights(case):
    structure, weights = LOSS_WEIGHTS[case]
    x, y = regression_data(rows=ROWS)
    loss = {"dict": losses(), "list": ["mse"] * 3, "single": "mse"}[structure]
    compare(
        lambda cls: mlp(cls, structure=structure),
        x,
        in_structure(y, structure),
        lambda: {"loss": loss, "loss_weights": weights},
        validation_split=0.25,
    )


class AddsLoss(keras.layers.Layer):
    """Adds one loss in training and another one otherwise."""

    def call(self, x, training=False):
        rate = 0.01 if training else 0.02
        self.add_loss(rate * keras.ops.sum(x**2))
        return x


def rich(
    cls,
    regularizer=None,
    added=False,
    head_added=False,
    batch_norm=False,
    dropout=0.0,
):
    """A net with what else may add to the loss or change state."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh")(inputs)
    if added:
        x = AddsLoss()(x)
        x = keras.layers.ActivityRegularization(l2=1e-2)(x)
    if batch_norm:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=3)(x)
    x = keras.layers.Dense(
        5,
        kernel_regularizer=regularizer,
        activity_regularizer=regularizer if added else None,
    )(x)
    outputs = {}
    for name in TASKS:
        h = keras.layers.Dense(4, kernel_regularizer=regularizer)(x)
        if head_added and name == "middle":
            h = AddsLoss()(h)
        if batch_norm:
            h = keras.layers.BatchNormalization(momentum=0.5)(h)
        outputs[name] = keras.layers.Dense(1)(h)
    return cls(inputs, outputs)


@pytest.mark.parametrize(
    "options",
    [
        {"regularizer": "l2"},
        {"added": True, "head_added": True},
        {"regularizer": "l1", "added": True, "batch_norm": True},
        {"batch_norm": True, "dropout": 0.4},
    ],
    ids=lambda options: "_".join(options),
)
def test_layers_that_add_loss_or_keep_state(options):
    x, y = regression_data(rows=ROWS)
    mine, stock = compare(
        lambda cls: rich(cls, **options),
        x,
        y,
        lambda: {
            "loss": losses(),
            "loss_weights": {"left": 3.0, "middle": 1.0, "right": 0.5},
            "metrics": {"left": ["mae"]},
        },
        validation_data=(x, y),
    )
    if options.get("dropout"):
        seeds = [v for v in mine.variables if "seed" in v.path]
        expected = [v for v in stock.variables if "seed" in v.path]
        assert seeds
        assert_same_bits(values(seeds), values(expected))


def classifier(cls):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    return cls(
        inputs,
        {
            "sparse": keras.layers.Dense(4, activation="softmax")(x),
            "logits": keras.layers.Dense(4)(x),
            "onehot": keras.layers.Dense(4, activation="softmax")(x),
            "binary": keras.layers.Dense(1, activation="sigmoid")(x),
        },
    )


def classification_data(dtype, column):
    """Class labels as integers or floats, of shape [rows] or [rows, 1]."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, FEATURES)).astype("float32")
    labels = rng.integers(0, 4, ROWS)
    shape = (ROWS, 1) if column else (ROWS,)
    y = {
        "sparse": labels.reshape(shape),
        "logits": rng.integers(0, 4, ROWS).reshape(shape),
        "onehot": np.eye(4)[labels],
        "binary": (labels % 2).reshape(ROWS, 1),
    }
    return x, {name: target.astype(dtype) for name, target in y.items()}


@pytest.mark.parametrize(
    ("dtype", "column", "metrics"),
    [
        ("int64", False, "strings"),
        ("int32", True, "objects"),
        ("float32", True, "strings"),
        ("float32", False, "objects"),
    ],
)
def test_classification(dtype, column, metrics):
    x, y = classification_data(dtype, column)

    def compile_arguments():
        loss = {
            "sparse": "sparse_categorical_crossentropy",
            "logits": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "onehot": "categorical_crossentropy",
            "binary": "binary_crossentropy",
        }
        if metrics == "strings":
            chosen = {
                "sparse": "accuracy",
                "logits": ["acc"],
                "onehot": ["accuracy", "mse"],
                "binary": ["accuracy"],
            }
        else:
            chosen = {
                "sparse": [
                    keras.metrics.SparseTopKCategoricalAccuracy(2, name="top"),
                    keras.metrics.SparseCategoricalAccuracy(name="sca"),
                ],
                "onehot": keras.metrics.CategoricalCrossentropy(name="entropy"),
                "binary": [
                    keras.metrics.AUC(num_thresholds=20, name="auc"),
                    keras.metrics.Precision(name="precision"),
                ],
            }
        return {
            "loss": loss,
            "metrics": chosen,
            "weighted_metrics": {"sparse": ["accuracy"]},
        }

    compare(classifier, x, y, compile_arguments, validation_data=(x, y))


def test_crossentropy_by_shapes():
    """Keras picks the loss behind "crossentropy" by the shapes."""
    x, y = classification_data("int32", True)
    compare(
        classifier,
        x,
        y,
        lambda: {
            "loss": dict.fromkeys(y, "crossentropy"),
        },
    )


def function_metric(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


METRICS = {
    "dict_of_strings": ("dict", lambda: dict.fromkeys(TASKS, "mae")),
    "function": ("dict", lambda: {"left": [function_metric, "mse"]}),
    "list_of_lists": ("list", lambda: [["mae"], ["mse", "mae"], []]),
    "list_dict": ("list", lambda: {"right": ["mae"]}),
    "single_list": ("single", lambda: ["mae", keras.metrics.R2Score()]),
    "single_dict": ("single", lambda: {"head_left": ["mae"]}),
}


@pytest.mark.parametrize("case", METRICS)
def test_metric_structures(case):
    structure, metrics = METRICS[case]
    x, y = regression_data(rows=ROWS)
    loss = {"dict": losses(), "list": ["mse"] * 3, "single": "mse"}[structure]
    mine, stock = compare(
        lambda cls: mlp(cls, structure=structure),
        x,
        in_structure(y, structure),
        lambda: {"loss": loss, "metrics": metrics()},
    )
    assert mine.metrics_names == stock.metrics_names


@pytest.fixture
def products_as_written():
    """Keeps `(a * b) * learning_rate` from becoming `(a * rate) * b`.

    TensorFlow does that to gradients that nothing but the update uses.
    """
    tf = pytest.importorskip("tensorflow")
    options = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options(
        {"arithmetic_optimization": False}
    )
    yield
    tf.config.optimizer.set_experimental_options(
        {"arithmetic_optimization": True, **options}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps_per_execution": 4, "run_eagerly": False},
        {
            "optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
            "run_eagerly": False,
        },
        {
            "optimizer": lambda: keras.optimizers.AdamW(
                keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5),
                weight_decay=0.1,
                clipnorm=0.1,
                use_ema=True,
                ema_momentum=0.5,
            )
        },
        {"optimizer": lambda: keras.optimizers.RMSprop(0.01)},
    ],
    ids=["steps_per_execution", "sgd", "adamw", "rmsprop"],
)
def test_ways_to_run(arguments, products_as_written):
    x, y = regression_data(rows=40)

    def compile_arguments():
        given = {
            name: value() if callable(value) else value
            for name, value in arguments.items()
        }
        return {
            "loss": losses(),
            "metrics": dict.fromkeys(TASKS, ["mae"]),
            **given,
        }

    # 5 batches per epoch: with 4 steps per execution one is left over.
    compare(
        lambda cls: mlp(cls, batch_norm=True, regularizer="l2"),
        x,
        y,
        compile_arguments,
        validation_data=(x, y),
    )


def test_xla():
    """Under XLA equal up to rounding: what it fuses depends on the graph."""
    tasks = TASKS[:2]
    x, y = regression_data(tasks, rows=16)
    stock, mine = mlp(keras.Model, tasks), mlp(tasks=tasks)
    expected, history = (
        train(
            model,
            x,
            y,
            lambda: {
                "loss": losses(tasks),
                "jit_compile": True,
                "run_eagerly": False,
            },
        )
        for model in (stock, mine)
    )
    for key, value in expected.items():
        np.testing.assert_allclose(history[key], value, rtol=1e-6)
    for a, b in zip(mine.weights, stock.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_shuffled_data_and_callbacks():
    """Callbacks see the same logs in the same order."""

    class Recorder(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append((batch, dict(logs)))

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append((epoch, dict(logs)))

    x, y = regression_data(rows=ROWS)
    seen = []
    for cls in (keras.Model, mtlkeras.MultiTaskModel):
        recorder = Recorder()
        train(
            mlp(cls),
            x,
            y,
            lambda: {"loss": losses()},
            callbacks=[recorder],
            shuffle=True,
            epochs=2,
        )
        seen.append(recorder.seen)
    stock, mine = seen
    assert len(stock) == 6
    assert mine == stock


def test_from_model():
    """A model made from a stock one trains the very weights of that one."""
    x, y = regression_data(rows=ROWS)
    stock, existing = mlp(keras.Model), mlp(keras.Model)
    mine = mtlkeras.MultiTaskModel.from_model(existing)
    expected = train(stock, x, y, lambda: {"loss": losses()})
    history = train(mine, x, y, lambda: {"loss": losses()})
    assert_same_logs(history, expected)
    assert_same_training(mine, stock)
    assert_same_bits(values(existing.weights), values(stock.weights))


def subclass(base):
    class Net(base):
        def __init__(self):
            super().__init__()
            self.trunk = keras.layers.Dense(8, activation="tanh")
            self.norm = keras.layers.BatchNormalization()
            self.heads = [keras.layers.Dense(1) for _ in TASKS]

        def call(self, x, training=False):
            x = self.norm(self.trunk(x), training=training)
            return {
                name: head(x)
                for name, head in zip(TASKS, self.heads, strict=True)
            }

    keras.utils.set_random_seed(0)
    return Net()


@pytest.mark.parametrize("built", [True, False])
def test_subclass(built):
    x, y = regression_data(rows=ROWS)

    def compile_arguments():
        return {
            "loss": losses(),
            "loss_weights": {"left": 2.0, "middle": 1.0, "right": 1.0},
            "metrics": {"right": ["mae"]},
        }

    trained = []
    for base in (keras.Model, mtlkeras.MultiTaskModel):
        model = subclass(base)
        if built:
            model(x[:1])
        history = train(model, x, y, compile_arguments, validation_data=(x, y))
        trained.append((model, history))
    (stock, expected), (mine, history) = trained
    assert_same_logs(history, expected)
    assert_same_training(mine, stock)


@pytest.mark.parametrize("strategy", ["joint", None])
def test_ways_to_say_joint(strategy):
    """Said in `fit`, after another strategy was compiled in."""
    x, y = regression_data(rows=ROWS)
    stock, mine = mlp(keras.Model), mlp()
    expected = train(stock, x, y, lambda: {"loss": losses()})
    history = train(
        mine,
        x,
        y,
        lambda: {"loss": losses(), "strategy": "alternating"},
        strategy=strategy,
    )
    assert_same_logs(history, expected)
    assert_same_training(mine, stock)


@pytest.mark.parametrize("weighted", [False, True])
def test_from_dataset(weighted):
    """Batches whose size is known and ones whose size is not."""
    tf = pytest.importorskip("tensorflow")
    x, y = regression_data(rows=ROWS)
    data = (x, y, row_weights(0)) if weighted else (x, y)
    dataset = tf.data.Dataset.from_tensor_slices(data)
    compare(
        mlp,
        dataset.batch(7, drop_remainder=weighted),
        None,
        lambda: {"loss": losses(), "metrics": {"left": ["mae"]}},
        batch_size=None,
        shuffle=False,
    )


def test_class_weight_and_initial_epoch():
    """What else `fit` takes reaches Keras as it came."""
    x, y = classification_data("int32", False)

    def build(cls):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((FEATURES,))
        return cls(inputs, keras.layers.Dense(4, activation="softmax")(inputs))

    mine, _ = compare(
        build,
        x,
        y["sparse"],
        lambda: {"loss": "sparse_categorical_crossentropy"},
        class_weight={0: 1.0, 1: 2.0, 2: 0.5, 3: 3.0},
        initial_epoch=1,
        epochs=3,
    )
    assert mine.history.epoch == [1, 2]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_graph_as_tensorflow_optimizes_it(optimizer):
    """With TensorFlow's own options, in the mode that `fit` has by default."""
    x, y = regression_data(rows=40)
    compare(
        lambda cls: mlp(cls, batch_norm=True, dropout=0.2, regularizer="l2"),
        x,
        y,
        lambda: {
            "loss": losses(),
            "metrics": dict.fromkeys(TASKS, ["mae"]),
            "loss_weights": {"left": 0.5, "middle": 1.0, "right": 2.0},
            "optimizer": optimizer,
            "steps_per_execution": 4,
            "run_eagerly": False,
        },
        validation_data=(x, y),
    )
