"""`fit(class_weight={"task": {...}})` equals sample weights by hand."""

import keras
import nets
import numpy as np
import pytest

import mtlkeras

CLASS_WEIGHTS = {"sparse": {0: 0.5, 2: 3.0}, "binary": {1: 4.0}}


def classification_data(rows=24):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6)).astype("float32")
    y = {
        "sparse": rng.integers(0, 3, (rows,)),
        "one_hot": np.eye(3, dtype="float32")[rng.integers(0, 3, rows)],
        "binary": rng.integers(0, 2, (rows, 1)).astype("float32"),
    }
    return x, y


def new_model(strategy, cls=mtlkeras.MultiTaskModel, **kwargs):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    trunk = keras.layers.Dense(8, activation="tanh")(inputs)
    softmax, sigmoid = "softmax", "sigmoid"
    model = cls(
        inputs,
        {
            "sparse": keras.layers.Dense(3, activation=softmax)(trunk),
            "one_hot": keras.layers.Dense(3, activation=softmax)(trunk),
            "binary": keras.layers.Dense(1, activation=sigmoid)(trunk),
        },
    )
    if strategy is not None:
        kwargs["strategy"] = strategy
    model.compile(
        keras.optimizers.SGD(0.1),
        {
            "sparse": "sparse_categorical_crossentropy",
            "one_hot": "categorical_crossentropy",
            "binary": "binary_crossentropy",
        },
        **kwargs,
    )
    return model


def by_hand(y, class_weights):
    classes = {
        "sparse": y["sparse"],
        "one_hot": y["one_hot"].argmax(1),
        "binary": np.nan_to_num(y["binary"][:, 0], nan=-1).astype(int),
    }
    return {
        name: np.array(
            [class_weights.get(name, {}).get(c, 1.0) for c in found], "float32"
        )
        for name, found in classes.items()
    }


@pytest.mark.parametrize("strategy", ["joint", "alternating", "sampled"])
def test_they_equal_sample_weights(strategy):
    x, y = classification_data()
    class_weights = {**CLASS_WEIGHTS, "one_hot": {1: 2.0}}
    ours, other = new_model(strategy), new_model(strategy)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    found = ours.fit(x, y, class_weight=class_weights, **options)
    weights = by_hand(y, class_weights)
    expected = other.fit(x, y, sample_weight=weights, **options)
    nets.assert_same_bits(nets.values(ours.weights), nets.values(other.weights))
    for key, values in expected.history.items():
        np.testing.assert_allclose(found.history[key], values, rtol=1e-6)


def test_they_multiply_sample_weights_and_missing_labels_stay_missing():
    x, y = classification_data()
    y["binary"][3:9] = np.nan
    given = {name: np.linspace(0.0, 2.0, 24, dtype="float32") for name in y}
    both = {
        name: weights * given[name]
        for name, weights in by_hand(y, CLASS_WEIGHTS).items()
    }
    ours, other = new_model("alternating"), new_model("alternating")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    ours.fit(x, y, sample_weight=given, class_weight=CLASS_WEIGHTS, **options)
    other.fit(x, y, sample_weight=both, **options)
    for a, b in zip(
        nets.values(ours.weights), nets.values(other.weights), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_they_hold_for_training_only_and_for_one_fit():
    x, y = classification_data()
    options = {"batch_size": 24, "shuffle": False, "verbose": 0}
    model, other = new_model("joint"), new_model("joint")
    validation = {"validation_data": (x, y)}
    found = model.fit(x, y, class_weight=CLASS_WEIGHTS, **validation, **options)
    value = model.evaluate(x, y, verbose=0, return_dict=True)
    assert found.history["val_loss"][0] == pytest.approx(value["loss"])
    other.set_weights(model.get_weights())
    model.fit(x, y, **options)
    other.fit(x, y, **options)
    nets.assert_same_bits(
        nets.values(model.weights), nets.values(other.weights)
    )


def test_dense_targets_are_weighed_entry_by_entry():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    maps = keras.layers.Conv2D(3, 1, activation="softmax")(inputs)
    mean = keras.layers.GlobalAveragePooling2D()(inputs)
    model = mtlkeras.MultiTaskModel(
        inputs, {"map": maps, "mean": keras.layers.Dense(1)(mean)}
    )
    model.compile(
        keras.optimizers.SGD(0.0),
        {"map": "sparse_categorical_crossentropy", "mean": "mse"},
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4, 4, 2)).astype("float32")
    y = {"map": rng.integers(0, 3, (6, 4, 4)), "mean": np.ones((6, 1))}
    found = model.fit(
        x, y, class_weight={"map": {2: 5.0}}, batch_size=6, verbose=0
    ).history["map_loss"][0]
    probabilities = np.take_along_axis(
        model.predict(x, verbose=0)["map"], y["map"][..., None], -1
    )[..., 0]
    weights = np.where(y["map"] == 2, 5.0, 1.0)
    expected = np.mean(-np.log(probabilities) * weights)
    assert found == pytest.approx(expected, rel=1e-5)


def test_one_task_keeps_keras_own_form():
    x, y = classification_data()
    keras.utils.set_random_seed(0)

    def fit(cls):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        outputs = keras.layers.Dense(3, activation="softmax")(inputs)
        model = cls(inputs, outputs)
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(
            x, y["sparse"], class_weight={0: 9.0}, shuffle=False, verbose=0
        )
        return nets.values(model.weights)

    nets.assert_same_bits(fit(mtlkeras.MultiTaskModel), fit(keras.Model))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sprase": {0: 1.0}}, r"unknown keys: \['sprase'\]"),
        ({0: 1.0, 1: 2.0}, "class weights by task"),
        ({"sparse": {"cat": 1.0}}, "class indices"),
        ({"sparse": {0: -1.0}}, "not negative"),
        ({"sparse": 2.0, "binary": {0: 1.0}}, "must be a dict"),
        ([1.0, 2.0], "must be a dict"),
    ],
)
def test_bad_input(given, message):
    x, y = classification_data()
    model = new_model("joint")
    before = nets.values(model.weights)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, class_weight=given, verbose=0)
    nets.assert_same_bits(nets.values(model.weights), before)
