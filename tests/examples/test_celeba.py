"""examples/celeba.py from its arguments to its files, on mock data."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

tfds = pytest.importorskip(
    "tensorflow_datasets",
    reason="needs TensorFlow Datasets: pip install 'mtlkeras[tfds]'",
)

FILE = Path(__file__).resolve().parents[2] / "examples" / "celeba.py"
SIZES = {"train": 64, "validation": 16, "test": 24}
ATTRIBUTES = ["Smiling", "Young", "Male"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("celeba", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_dataset(builder, *arguments, split, **keywords):
    """Faces that are bright where the attribute of that row is present."""
    rng = np.random.default_rng(len(split))
    names = list(builder.info.features["attributes"])

    def generate():
        for _ in range(SIZES[split]):
            present = rng.random(len(names)) < 0.5
            image = rng.integers(0, 60, size=(218, 178, 3))
            for k, name in enumerate(ATTRIBUTES):
                image[40 * k : 40 * k + 40] += 190 * present[names.index(name)]
            yield {
                "image": image.astype("uint8"),
                "attributes": dict(zip(names, present, strict=True)),
            }

    signature = {
        "image": tf.TensorSpec((218, 178, 3), tf.uint8),
        "attributes": {name: tf.TensorSpec((), tf.bool) for name in names},
    }
    data = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return data.apply(tf.data.experimental.assert_cardinality(SIZES[split]))


def test_from_arguments_to_files(example, tmp_path, capsys):
    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        example.main(
            [
                *("--strategy", "random_groups", "--num_groups", "2"),
                *("--epochs", "2", "--batch_size", "16", "--width", "4"),
                *("--image_size", "16", "--learning_rate", "0.01"),
                *("--attributes", *ATTRIBUTES, "--output", str(tmp_path)),
            ]
        )
    printed = capsys.readouterr().out
    assert "3 tasks in 2 groups" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["f1"]) == ATTRIBUTES
    for values in (results["accuracy"], results["f1"]):
        assert all(0 <= value <= 1 for value in values.values())
    assert len(results["history"]["val_Smiling_loss"]) == 2
    assert results["history"]["loss"][1] < results["history"]["loss"][0]
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert set(model.task_names) == set(ATTRIBUTES)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert not (tmp_path / "backup").exists()


def test_scores(example):
    """Against scikit-learn."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    inputs = keras.Input((2,))
    outputs = {name: keras.layers.Dense(1)(inputs) for name in "ab"}
    model = example.mtlkeras.MultiTaskModel(inputs, outputs)
    x = rng.normal(size=(50, 2)).astype("float32")
    y = {name: rng.integers(0, 2, (50, 1)).astype("float32") for name in "ab"}
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    accuracy, f1 = example.scores_of(model, data)
    predicted = model.predict(x, verbose=0)
    for i, name in enumerate("ab"):
        found = predicted[name] > 0
        assert accuracy[i] == metrics.accuracy_score(y[name], found)
        assert f1[i] == pytest.approx(metrics.f1_score(y[name], found))


def test_the_network_has_the_size_that_a_gpu_trains_in_minutes(example):
    model = example.build_model(64, [f"task_{i}" for i in range(40)], 64)
    assert 1e6 < model.count_params() < 3e6
    assert len(model.shared_variables) > 10
