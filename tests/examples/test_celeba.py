"""examples/celeba.py from arguments to files, on mock data and drawn faces."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

FILE = Path(__file__).resolve().parents[2] / "examples" / "celeba.py"
SIZES = {"train": 64, "validation": 16, "test": 24}
ATTRIBUTES = ["Smiling", "Young", "Male"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("celeba", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def tfds():
    return pytest.importorskip(
        "tensorflow_datasets",
        reason="needs TensorFlow Datasets: pip install 'mtlkeras[tfds]'",
    )


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


def test_from_arguments_to_files(example, tfds, tmp_path, capsys):
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


def test_without_drawn_the_settings_are_the_published_ones(example):
    options = example.parse([])
    assert (options.epochs, options.batch_size) == (15, 256)
    assert (options.image_size, options.width) == (64, 64)
    assert options.learning_rate == 5e-4
    assert options.output == Path("celeba")
    joint = example.parse(["--strategy", "joint", "--epochs", "2"])
    assert (joint.learning_rate, joint.epochs) == (1e-3, 2)


# -- drawn faces --------------------------------------------------------------


def test_drawn_from_arguments_to_files(example, tmp_path, capsys):
    attributes = ["Smiling", "Wearing_Hat", "Bald"]
    example.main(
        [
            *("--drawn", "--rows", "192", "--epochs", "2", "--width", "4"),
            *("--batch_size", "32", "--image_size", "24", "--num_groups", "2"),
            *("--attributes", *attributes, "--output", str(tmp_path)),
        ]
    )
    printed = capsys.readouterr().out
    assert "3 tasks in 2 groups" in printed
    assert printed.endswith("says nothing about faces or about CelebA.\n")
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["accuracy"]) == attributes
    assert results["options"]["drawn"] == "True"
    assert results["history"]["loss"][1] < results["history"]["loss"][0]
    for name in ("curves.png", "faces.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert set(model.task_names) == set(attributes)


def test_drawn_data_have_the_form_of_celeba(example, tfds):
    arguments = ["--attributes", "Smiling", "Bald", "--image_size", "16"]
    drawn = example.parse(["--drawn", *arguments, "--rows", "8"])
    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        real = example.load("test", example.parse(arguments))
    assert example.load("test", drawn).element_spec == real.element_spec


def test_an_attribute_that_is_not_drawn_is_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.parse(["--drawn", "--attributes", "Smiling", "Young"])
    assert "Received: ['Young']" in capsys.readouterr().err


def test_constant_accuracy(example):
    y = {"a": np.array([[0], [0], [0], [1]]), "b": np.array([[1], [0]] * 2)}
    data = tf.data.Dataset.from_tensor_slices((np.zeros((4, 1)), y)).batch(3)
    assert example.constant_accuracy(data) == pytest.approx((0.75 + 0.5) / 2)


def test_faces_depend_on_their_number_and_the_seed_only(example):
    draw = example.drawn_faces.drawn_faces
    x, y = draw(6, 20, seed=2)
    assert x.shape == (6, 20, 20, 3)
    assert x.dtype == np.uint8
    assert tuple(y) == example.drawn_faces.ATTRIBUTES
    x_some, y_some = draw(2, 20, seed=2, first=3)
    np.testing.assert_array_equal(x_some, x[3:5])
    for name, labels in y.items():
        assert labels.shape == (6, 1)
        assert labels.dtype == np.float32
        np.testing.assert_array_equal(y_some[name], labels[3:5])
    assert not np.array_equal(draw(6, 20, seed=3)[0], x)


def test_splits_share_no_face(example):
    options = example.parse(["--drawn", "--rows", "40", "--image_size", "12"])
    faces = [
        {picture.tobytes() for picture in x}
        for split in ("train", "validation", "test")
        for x, _ in [next(example.load(split, options).as_numpy_iterator())]
    ]
    assert [len(found) for found in faces] == [40, 10, 20]
    assert len(set.union(*faces)) == 70


def test_an_attribute_is_seen_and_changes_nothing_else(example):
    faces = example.drawn_faces

    def draw(seed, *names):
        present = {name: name in names for name in faces.ATTRIBUTES}
        picture = faces.draw_face(np.random.default_rng(seed), present, 48)
        return picture.astype("int")

    for name in faces.ATTRIBUTES:
        for seed in range(5):
            changed = np.abs(draw(seed) - draw(seed, name)).max(-1) > 0
            assert 0.005 < changed.mean() < 0.4, name
            # The corners at the top are background, the same in both.
            assert not changed[:3, [0, 1, -2, -1]].any(), name


def test_attributes_exclude_and_accompany_one_another(example):
    rng = np.random.default_rng(0)
    rows = [example.drawn_faces.draw_attributes(rng) for _ in range(4000)]
    has = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    assert all(0.15 < present.mean() < 0.55 for present in has.values())
    assert not (has["Bald"] & (has["Bangs"] | has["Blond_Hair"])).any()
    lipstick = has["Wearing_Lipstick"]
    for name, with_it, without in (
        ("Mustache", 0.05, 0.45),
        ("Rosy_Cheeks", 0.6, 0.2),
    ):
        # Four standard deviations of the less frequent group.
        assert has[name][lipstick].mean() == pytest.approx(with_it, abs=0.06)
        assert has[name][~lipstick].mean() == pytest.approx(without, abs=0.06)
