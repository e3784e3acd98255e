"""What `export` writes, used by others."""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from nets import TASKS, Subclassed, losses, mlp, regression_data, values

from mtlkeras import MultiTaskModel

Dense = keras.layers.Dense
SCRIPT = pathlib.Path(__file__).parent / "load_and_run.py"


def raw_inputs():
    """Two inputs as they come: numbers to be scaled, and words.

    `left` needs both, `middle` the numbers and `right` the words only.
    """
    image = keras.Input((6,), name="image")
    text = keras.Input((1,), name="text", dtype="string")
    scaled = keras.layers.Normalization(mean=2.0, variance=4.0)(image)
    seen = Dense(5, activation="tanh", name="see")(scaled)
    indices = keras.layers.StringLookup(vocabulary=["red", "green"])(text)
    read = keras.layers.Embedding(3, 4, name="read")(indices)
    read = keras.layers.Flatten()(read)
    both = keras.layers.concatenate([seen, read])
    return MultiTaskModel(
        {"image": image, "text": text},
        {
            "left": Dense(1, name="l")(keras.layers.Dropout(0.5)(both)),
            "middle": Dense(2, activation="softmax", name="m")(seen),
            "right": Dense(1, name="r")(read),
        },
    )


def raw_data(rows=8):
    image, y = regression_data(rows=rows)
    words = np.array([["red"], ["green"], ["blue"]])
    y["middle"] = np.tile([[0.0, 1.0]], (rows, 1)).astype("float32")
    return {"image": image, "text": words[np.arange(rows) % 3]}, y


def as_tensors(x):
    """Keras takes no NumPy strings."""
    return {name: tf.constant(value) for name, value in x.items()}


def train(model, x, y):
    model.compile("adam", losses(y), strategy="alternating", run_eagerly=True)
    model.fit(x, y, verbose=0)
    return model


def signatures(path):
    return tf.saved_model.load(str(path)).signatures


# -- in another process --------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Model, inputs, and what a process without mtlkeras made of the export."""
    folder = tmp_path_factory.mktemp("export")
    x, y = raw_data()
    model = train(raw_inputs(), as_tensors(x), y)
    model.export(folder / "model", verbose=False)
    model.task_model("left").save(folder / "left.keras")
    x, _ = raw_data(rows=5)  # another batch size
    np.savez(folder / "inputs.npz", **x)
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], cwd=folder, check=True
    )
    return model, as_tensors(x), folder, dict(np.load(folder / "results.npz"))


def test_a_clean_process_gets_the_predictions(elsewhere):
    model, x, _, results = elsewhere
    expected = model(x)
    assert np.ptp(expected["right"]) > 0
    for key in ("serve", "serving_default"):
        assert list(results[f"{key}/inputs"]) == ["image", "text"]
        for name in TASKS:
            np.testing.assert_allclose(
                results[f"{key}/{name}"], expected[name], rtol=1e-5, atol=1e-6
            )
    needed = {"left": ["image", "text"], "middle": ["image"], "right": ["text"]}
    for name, inputs in needed.items():
        assert list(results[f"{name}/inputs"]) == inputs
        assert {k for k in results if k.startswith(f"{name}/")} == {
            f"{name}/inputs",
            f"{name}/{name}",
        }
        np.testing.assert_allclose(
            results[f"{name}/{name}"], expected[name], rtol=1e-5, atol=1e-6
        )


def test_saved_model_cli(elsewhere):
    model, x, folder, results = elsewhere
    shown = str(results["shown"])
    found = re.findall(r"^signature_def\['(.+)'\]:$", shown, re.MULTILINE)
    # TensorFlow adds one that restores the variables.
    assert set(found) - {"__saved_model_init_op"} == {
        "serve",
        "serving_default",
        *TASKS,
    }
    np.testing.assert_allclose(
        np.load(folder / "out" / "right.npy"),
        model(x)["right"],
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_task_model_loads_in_a_clean_process(elsewhere):
    model, x, _, results = elsewhere
    np.testing.assert_allclose(
        results["alone"],
        model(x)["left"],
        rtol=1e-5,
        atol=1e-6,
    )


# -- what is in it -------------------------------------------------------------


def operations(function):
    """How often each kind of operation is in a signature, with what it calls.

    Counted from outside of the model: in the graph that was saved.
    """
    found = {}
    library = function.graph.as_graph_def().library.function
    nodes = list(function.graph.as_graph_def().node)
    nodes += [node for called in library for node in called.node_def]
    for node in nodes:
        found[node.op] = found.get(node.op, 0) + 1
    return found


def test_a_signature_holds_only_what_its_task_needs(tmp_path):
    mlp().export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    assert operations(loaded.signatures["serving_default"])["MatMul"] == 5
    for name in TASKS:
        assert operations(loaded.signatures[name])["MatMul"] == 3
        assert len(loaded.signatures[name].variables) == 6


def test_a_nested_model_takes_all_of_its_inputs(tmp_path):
    """While each of its outputs depends on one of them."""
    first, second = keras.Input((6,)), keras.Input((4,))
    inner = keras.Model([first, second], [Dense(3)(first), Dense(3)(second)])
    image, text = (
        keras.Input((6,), name="image"),
        keras.Input((4,), name="text"),
    )
    rest = keras.Input((2,), name="rest")
    a, b = inner([image, text])
    model = MultiTaskModel(
        [image, text, rest],
        {"left": Dense(1)(a), "right": Dense(1)(b), "middle": Dense(1)(rest)},
    )
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path)).signatures
    x, _ = regression_data(rows=3)
    given = {"image": x, "text": x[:, :4], "rest": x[:, :2]}
    expected = model(list(given.values()))
    for name, inputs in (
        ("left", {"image", "text"}),
        ("right", {"image", "text"}),
        ("middle", {"rest"}),
    ):
        _, specs = loaded[name].structured_input_signature
        assert set(specs) == inputs
        found = loaded[name](**{key: tf.constant(given[key]) for key in inputs})
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("structure", "is_compiled"),
    [("dict", False), ("dict", True), ("list", True), ("single", False)],
)
def test_outputs_have_the_names_of_the_tasks(structure, is_compiled, tmp_path):
    x, y = regression_data(rows=4)
    model = mlp(structure=structure)
    names = model.task_names
    if is_compiled:
        model.compile("adam", "mse")
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    assert set(loaded.signatures) == {"serve", "serving_default", *names}
    predictions = model(x)
    expected = dict(zip(names, keras.tree.flatten(predictions), strict=True))
    if structure == "dict":
        expected = predictions
    found = loaded.signatures["serving_default"](features=tf.constant(x))
    assert set(found) == set(names)
    for name in names:
        alone = loaded.signatures[name](features=tf.constant(x))
        assert list(alone) == [name]
        for each in (found, alone):
            np.testing.assert_allclose(
                each[name], expected[name], rtol=1e-5, atol=1e-6
            )
    # Keras's own endpoint has the model's own structure.
    keras.tree.assert_same_structure(loaded.serve(x), predictions)


def test_an_output_without_loss_has_a_signature(tmp_path):
    x, y = regression_data(("left", "middle"), rows=4)
    model = mlp()
    train(model, x, y)
    assert model.task_names == ("left", "middle")
    model.export(tmp_path, verbose=False)
    found = signatures(tmp_path)["right"](features=tf.constant(x))["right"]
    np.testing.assert_allclose(found, model(x)["right"], rtol=1e-5, atol=1e-6)


def test_a_subclassed_model(tmp_path):
    x, y = regression_data(rows=4)
    model = train(Subclassed(), x.astype("float64"), y)
    expected = model(x)

    def check(path):
        loaded = signatures(path)
        assert set(loaded) == {"serve", "serving_default", *TASKS}
        for key in ("serving_default", *TASKS):
            found = loaded[key](args_0=tf.constant(x[:3]))
            assert set(found) == (set(TASKS) if key not in TASKS else {key})
            for name, value in found.items():
                np.testing.assert_allclose(
                    value, expected[name][:3], rtol=1e-5, atol=1e-6
                )

    model.export(tmp_path / "fitted", verbose=False)
    check(tmp_path / "fitted")
    # Called, but never compiled; and with the user's own signature.
    other = Subclassed()
    other(x)
    other.set_weights(model.get_weights())
    spec = keras.InputSpec(shape=(3, 6), dtype="float32")
    for name, given in (("called", None), ("fixed", [spec])):
        other.export(tmp_path / name, verbose=False, input_signature=given)
        check(tmp_path / name)


class Words(MultiTaskModel):
    """A subclass whose inputs are a dict with integers."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(9, 3)
        self.heads = {"left": Dense(1), "right": Dense(1)}

    def call(self, inputs):
        x = keras.ops.mean(self.embedding(inputs["words"]), axis=1)
        x = keras.ops.concatenate([x, inputs["rest"]], axis=-1)
        return {name: head(x) for name, head in self.heads.items()}


def test_a_subclassed_model_with_integer_inputs(tmp_path):
    rest, y = regression_data(("left", "right"), rows=4)
    x = {"words": np.arange(8).reshape(4, 2), "rest": rest}
    model = train(Words(), x, y)
    model.export(tmp_path, verbose=False)
    left = signatures(tmp_path)["left"]
    found = left(words=tf.constant(x["words"]), rest=tf.constant(rest))
    np.testing.assert_allclose(
        found["left"], model(x)["left"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("named", [False, True])
def test_the_users_input_signature(named, tmp_path):
    """Fixed shapes, and names of the user's own."""
    x, _ = regression_data(rows=2)
    model = mlp()
    spec = tf.TensorSpec((2, 6), tf.float32, "pixels" if named else None)
    model.export(tmp_path, verbose=False, input_signature=[spec])
    loaded = signatures(tmp_path)
    key = "pixels" if named else "features"
    for name in ("serving_default", *TASKS):
        _, specs = loaded[name].structured_input_signature
        assert specs == {key: tf.TensorSpec((2, 6), tf.float32, key)}
    assert loaded["left"](**{key: tf.constant(x)})["left"].shape == (2, 1)


def test_verbose_is_that_of_keras(tmp_path, capsys):
    model = mlp()
    model.export(tmp_path / "quiet", verbose=False)
    assert capsys.readouterr().out == ""
    model.export(tmp_path / "default")
    printed = capsys.readouterr().out
    assert f"Saved artifact at '{tmp_path / 'default'}'" in printed
    for name in ("serve", *TASKS):
        assert f"* Endpoint '{name}'" in printed


def test_training_goes_on_after_an_export(tmp_path):
    """And with the same bits as without it."""
    x, y = regression_data(rows=8)
    trained = []
    for exports in (False, True):
        model = train(mlp(batch_norm=True), x, y)
        if exports:
            model.export(tmp_path, verbose=False)
        model.fit(x, y, verbose=0)
        trained.append(values(model.variables))
    for a, b in zip(*trained, strict=True):
        np.testing.assert_array_equal(a, b)


# -- bad input -----------------------------------------------------------------


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx", "litert"])
def test_unbuilt(format, tmp_path):
    with pytest.raises(ValueError, match="built.*Subclassed.*fit"):
        Subclassed().export(tmp_path / "model.tflite", format=format)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["serve", "serving_default", "signatures", "variables", "_left", ""]
)
def test_names_that_cannot_be_signatures(name, tmp_path):
    model = mlp(tasks=("left", name))
    with pytest.raises(ValueError, match=rf"named \['{name}'\].*another name"):
        model.export(tmp_path / "model", verbose=False)
    assert not (tmp_path / "model").exists()
    # What the message says.
    renamed = MultiTaskModel(
        model.input,
        {"left": model.output["left"], "other": model.output[name]},
    )
    assert renamed.task_names == ("left", "other")
    assert {id(w) for w in renamed.weights} == {id(w) for w in model.weights}


def test_unusual_names_that_can(tmp_path):
    names = ("left hand", "depth/mean", "größe")
    inputs = keras.Input((6,), name="features")
    x = Dense(3)(inputs)
    model = MultiTaskModel(inputs, {name: Dense(1)(x) for name in names})
    model.export(tmp_path, verbose=False)
    x, _ = regression_data(rows=2)
    for name in names:
        found = signatures(tmp_path)[name](features=tf.constant(x))
        np.testing.assert_allclose(
            found[name],
            model.task_model(name)(x),
            rtol=1e-5,
            atol=1e-6,
        )


def test_an_input_signature_of_another_size(tmp_path):
    specs = [keras.InputSpec(shape=(None, 6), dtype="float32")] * 2
    with pytest.raises(ValueError, match="one entry for each.*features"):
        mlp().export(tmp_path, input_signature=specs)


def test_a_call_that_returns_no_dict(tmp_path):
    class Net(MultiTaskModel):
        def __init__(self):
            super().__init__()
            self.dense = Dense(1)

        def call(self, inputs):
            return self.dense(inputs)

    model = Net()
    model(regression_data()[0])
    with pytest.raises(ValueError, match="must return a dict"):
        model.export(tmp_path)


# -- other formats, which are Keras's own --------------------------------------


def exported(path, format):
    x, y = regression_data(rows=4)
    model = train(mlp(batch_norm=True), x, y)
    model.export(path, format=format, verbose=False)
    return x, model(x)


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx(tmp_path):
    for package in ("onnx", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    path = tmp_path / "model.onnx"
    x, expected = exported(path, "onnx")
    session = onnxruntime.InferenceSession(path)
    assert [i.name for i in session.get_inputs()] == ["features"]
    assert [o.name for o in session.get_outputs()] == list(TASKS)
    for rows in (4, 1):
        found = session.run(["right"], {"features": x[:rows]})[0]
        np.testing.assert_allclose(
            found, expected["right"][:rows], rtol=1e-4, atol=1e-6
        )


def test_litert(tmp_path):
    module = pytest.importorskip("ai_edge_litert.interpreter")
    path = tmp_path / "model.tflite"
    x, expected = exported(path, "litert")
    runner = module.Interpreter(str(path)).get_signature_runner()
    assert list(runner.get_input_details()) == ["features"]
    for rows in (4, 1):
        found = runner(features=x[:rows])
        assert set(found) == set(TASKS)
        for name in TASKS:
            np.testing.assert_allclose(
                found[name], expected[name][:rows], rtol=1e-4, atol=1e-6
            )
