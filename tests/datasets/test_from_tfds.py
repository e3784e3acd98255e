"""TensorFlow Datasets: the catalogue's builders on mock data, and real files.

Nothing here may start a download: it would retry for minutes.
"""

import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mtlkeras
from mtlkeras.backend.tensorflow import tfds_recipes
from mtlkeras.datasets import from_tfds

tfds = pytest.importorskip(
    "tensorflow_datasets",
    reason="needs TensorFlow Datasets: pip install 'mtlkeras[tfds]'",
)

ATTRIBUTES = [
    "Smiling",
    "Young",
    "Male",
]


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
    def download(*arguments, **keywords):
        raise AssertionError("a test tried to download")

    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", download, raising=True
    )


def mocked(*examples):
    """The catalogue's builders with these examples, nested dicts of arrays.

    `tfds`'s own would be noise, with images and masks of unlike size.
    """

    def as_dataset(builder, *arguments, **keywords):
        features = builder.info.features

        def only(example, features):
            return {
                name: only(example[name], features[name])
                if isinstance(example[name], dict)
                else example[name]
                for name in features
                if name in example
            }

        def generate():
            return iter([only(example, features) for example in examples])

        specs = tf.nest.map_structure(
            lambda value: tf.TensorSpec(
                [None if n == VARIES else n for n in np.shape(value)],
                np.asarray(value).dtype
                if np.asarray(value).dtype.kind != "U"
                else tf.string,
            ),
            only(examples[0], features),
        )
        data = tf.data.Dataset.from_generator(generate, output_signature=specs)
        return data.apply(
            tf.data.experimental.assert_cardinality(len(examples))
        )

    return tfds.testing.mock_data(as_dataset_fn=as_dataset)


VARIES = 13  # a size in examples that stands for an unknown one


def first(dataset):
    return next(dataset.as_numpy_iterator())


def celeb(i, names=ATTRIBUTES):
    return {
        "image": np.full((218, 178, 3), 10 * i, "uint8"),
        "attributes": {
            name: np.bool_((i >> k) & 1) for k, name in enumerate(names)
        },
        "landmarks": {"nose_x": np.int64(i), "nose_y": np.int64(2 * i)},
    }


class TestCatalogue:
    def test_celeb_a(self):
        builder = tfds.builder("celeb_a")
        names = list(builder.info.features["attributes"])
        with mocked(*[celeb(i, names) for i in range(6)]):
            data = from_tfds("celeb_a", batch_size=4)
            some = from_tfds(
                "celeb_a",
                {
                    "smiling": "attributes/Smiling",
                    "old": lambda e: ~e["attributes"]["Young"],
                    "nose": lambda e: (
                        tf.stack(
                            [e["landmarks"]["nose_x"], e["landmarks"]["nose_y"]]
                        )
                        / [178, 218]
                    ),
                },
                image_size=(64, 48),
            )
            x, y = first(data)
            assert len(data) == 2
            assert x.shape == (4, 218, 178, 3)
            assert x.dtype == np.float32
            assert x[:, 5, 5, 0].tolist() == [0, 10, 20, 30]
            assert list(y) == names
            assert len(y) == 40
            for k, name in enumerate(names[:2]):
                assert y[name].dtype == np.float32
                expected = [[i >> k & 1] for i in range(4)]
                assert y[name].tolist() == expected
            x, y = first(some)
            assert x.shape == (6, 64, 48, 3)
            assert list(y) == ["smiling", "old", "nose"]
            index = names.index("Young")
            assert y["old"][:, 0].tolist() == [
                1 - (i >> index & 1) for i in range(6)
            ]
            np.testing.assert_allclose(y["nose"][3], [3 / 178, 6 / 218])

    def test_tasks_by_name(self):
        with mocked(celeb(5)):
            _, y = first(from_tfds("celeb_a", ["Male", "Smiling"]))
        assert {name: v.tolist() for name, v in y.items()} == {
            "Male": [[1.0]],
            "Smiling": [[1.0]],
        }

    def test_nyu_depth_v2(self):
        depth = np.arange(480 * 640).reshape(480, 640) % 640 / 64
        example = {
            "image": np.zeros((480, 640, 3), "uint8"),
            "depth": depth.astype("float16"),
        }
        with mocked(example):
            x, y = first(from_tfds("nyu_depth_v2", image_size=(240, 320)))
        assert x.shape == (1, 240, 320, 3)
        assert y["depth"].shape == (1, 240, 320, 1)
        assert y["depth"].dtype == np.float32
        # The nearest pixel: no value in between appears.
        assert set(y["depth"].ravel()) <= set(depth.astype("float16").ravel())

    def test_oxford_iiit_pet(self):
        def pet(i, height, box):
            mask = np.full((height, VARIES, 1), 2, "uint8")
            mask[:4] = 1
            mask[4:6] = 3
            return {
                "image": np.zeros((height, VARIES, 3), "uint8"),
                "label": np.int64(i),
                "species": np.int64(i % 2),
                "segmentation_mask": mask,
                "head_bbox": np.array(box, "float32"),
                "file_name": "x",
            }

        boxes = [[0.1, 0.2, 0.5, 0.6], [0, 0, 0, 0]]
        with mocked(pet(36, VARIES, boxes[0]), pet(3, 20, boxes[1])):
            with pytest.raises(ValueError, match=r"image_size=\(height"):
                from_tfds("oxford_iiit_pet")
            rows = list(from_tfds("oxford_iiit_pet", batch_size=None))
            assert [tuple(x.shape) for x, _ in rows] == [
                (VARIES, VARIES, 3),
                (20, VARIES, 3),
            ]
            tasks = ["breed", "species", "mask", "head"]
            data = from_tfds("oxford_iiit_pet", tasks, image_size=(8, 8))
            x, y = first(data)
        assert x.shape == (2, 8, 8, 3)
        assert y["breed"].tolist() == [36, 3]
        assert y["breed"].dtype == np.int32
        assert y["species"].tolist() == [0, 1]
        assert y["mask"].shape == (2, 8, 8, 1)
        assert set(y["mask"].ravel()) == {0, 1, 2}
        np.testing.assert_allclose(
            y["head"], [[0.1, 0.2, 0.5, 0.6], [np.nan] * 4]
        )

    def test_shapes3d(self):
        names = ["floor_hue", "object_hue", "orientation", "scale", "shape"]
        names.append("wall_hue")
        example = {f"label_{n}": np.int64(i) for i, n in enumerate(names)}
        example["image"] = np.zeros((64, 64, 3), "uint8")
        with mocked(example):
            _, y = first(from_tfds("shapes3d"))
        assert {n: v.tolist() for n, v in y.items()} == {
            n: [i] for i, n in enumerate(names)
        }

    def test_movielens(self):
        def rating(user, movie, stars, genres):
            return {
                "user_id": str(user),
                "movie_id": str(movie),
                "user_rating": np.float32(stars),
                "user_gender": np.bool_(user % 2),
                "movie_genres": np.array(genres, "int64"),
            }

        fillers = list(range(VARIES))
        with mocked(rating(138, 357, 4, fillers), rating(7, 12, 3, [2, 20])):
            data = from_tfds("movielens/100k-ratings")
            x, y = first(data)
            every = ["rating", "liked", "genres", "gender"]
            _, more = first(from_tfds("movielens/100k-ratings", every))
            with pytest.raises(ValueError, match="one shape to be batched"):
                from_tfds("movielens/100k-ratings", {"g": "movie_genres"})
        assert {n: v.tolist() for n, v in x.items()} == {
            "user_id": [138, 7],
            "movie_id": [357, 12],
        }
        assert {n: v.tolist() for n, v in y.items()} == {
            "rating": [[4.0], [3.0]],
            "liked": [[1.0], [0.0]],
        }
        assert more["gender"].tolist() == [[0.0], [1.0]]
        assert more["genres"].shape == (2, 21)
        assert np.flatnonzero(more["genres"][1]).tolist() == [2, 20]

    def test_without_a_recipe(self):
        example = {"image": np.ones((28, 28, 1), "uint8"), "label": np.int64(3)}
        tasks = {"digit": "label", "odd": lambda e: e["label"] % 2 == 1}
        with mocked(example, example):
            x, y = first(from_tfds("mnist", tasks, inputs="image"))
            assert x.shape == (2, 28, 28, 1)
            assert y["digit"].tolist() == [3, 3]
            assert y["odd"].tolist() == [[1.0], [1.0]]
            x, _ = first(from_tfds("mnist", tasks, inputs={"a": "image"}))
            assert list(x) == ["a"]

    def test_shuffling(self):
        examples = [celeb(i) for i in range(8)]
        with mocked(*examples):

            def order(**arguments):
                data = from_tfds("celeb_a", ["Male"], **arguments)
                batches = data.as_numpy_iterator()
                return [(x[:, 0, 0, 0] / 10).tolist() for x, _ in batches]

            assert order() == [list(range(8))]
            shuffled = order(shuffle_buffer=8)
            assert sorted(shuffled[0]) == list(range(8))
            assert shuffled != order()
            assert order(shuffle_buffer=8) == shuffled
            assert order(shuffle_buffer=8, seed=1) != shuffled


class TwoTasks(tfds.core.GeneratorBasedBuilder):
    """Numbers as pictures; a second config has another label of them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="labels"),
        tfds.core.BuilderConfig(name="depths"),
        tfds.core.BuilderConfig(name="fewer"),
        tfds.core.BuilderConfig(name="others"),
    ]
    SIZE = 40

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(6, 6, 1)),
        }
        if self.builder_config.name == "labels":
            features["label"] = tfds.features.ClassLabel(num_classes=4)
        else:
            features["depth"] = tfds.features.Tensor(
                shape=(1,), dtype=tf.float32
            )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        config = self.builder_config.name
        size = self.SIZE - (config == "fewer")
        for i in range(size):
            key = f"{'x' if config == 'others' else 'n'}{i}"
            image = np.full((6, 6, 1), i, "uint8")
            label = (
                {"label": i % 4}
                if config == "labels"
                else {"depth": np.array([i / 10], "float32")}
            )
            yield key, {"id": key, "image": image, **label}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for config in TwoTasks.BUILDER_CONFIGS:
        shards = 4 if config.name == "depths" else 1
        TwoTasks(config=config.name, data_dir=folder).download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                num_shards=shards, try_download_gcs=False
            ),
        )
    return folder


class TestLocalBuilder:
    def test_end_to_end(self, data_dir):
        """From files to a trained model and back."""
        data = from_tfds(
            "two_tasks/labels",
            {"label": "label", "even": lambda e: e["label"] % 2 == 0},
            split="train[:75%]",
            inputs="image",
            batch_size=8,
            data_dir=data_dir,
        )
        assert len(data) == 4
        x = np.concatenate([x for x, _ in data])
        y = np.concatenate([y["label"] for _, y in data])
        assert (x[:, 0, 0, 0] % 4).tolist() == y.tolist()
        assert len(set(x[:, 0, 0, 0])) == 30
        inputs = keras.Input((6, 6, 1))
        trunk = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
        model = mtlkeras.MultiTaskModel(
            inputs,
            {
                "label": keras.layers.Dense(4, "softmax")(trunk),
                "even": keras.layers.Dense(1, "sigmoid")(trunk),
            },
        )
        model.compile(
            "adam",
            {
                "label": "sparse_categorical_crossentropy",
                "even": "binary_crossentropy",
            },
            metrics={"even": "accuracy"},
            strategy="alternating",
        )
        history = model.fit(data, epochs=2, verbose=0, shuffle=False).history
        assert np.isfinite(history["loss"]).all()
        assert {"label_loss", "even_accuracy"} <= set(history)

    @pytest.fixture
    def recipe(self, monkeypatch):
        def use(config):
            def two_tasks(features):
                return tfds_recipes.Recipe(
                    "image",
                    {"label": "label", "depth": lambda e: e["depth"]},
                    ("label", "depth"),
                    {"depth": (config, "depth")},
                    "id",
                )

            monkeypatch.setitem(tfds_recipes.RECIPES, "two_tasks", two_tasks)

        return use

    def test_two_configs_are_joined(self, data_dir, recipe):
        """Written into one file and into four, so that order is at stake."""
        recipe("depths")
        data = from_tfds("two_tasks/labels", data_dir=data_dir, batch_size=40)
        x, y = first(data)
        number = x[:, 0, 0, 0]
        assert sorted(number) == list(range(40))
        assert (number % 4).tolist() == y["label"].tolist()
        np.testing.assert_allclose(y["depth"][:, 0], number / 10, rtol=1e-6)
        # Without the task nothing is joined.
        _, y = first(
            from_tfds("two_tasks/labels", ["label"], data_dir=data_dir)
        )
        assert list(y) == ["label"]

    def test_configs_of_other_examples(self, data_dir, recipe):
        recipe("fewer")
        with pytest.raises(ValueError, match="40 and 39 examples"):
            from_tfds("two_tasks/labels", data_dir=data_dir)
        recipe("others")
        data = from_tfds("two_tasks/labels", data_dir=data_dir)
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="same examples: their"
        ):
            first(data)

    def test_data_that_are_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="`download=True`"):
            from_tfds("two_tasks", ["label"], inputs="image", data_dir=tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"(?s)`download=True`.*cityscapes-dataset"
        ):
            from_tfds("cityscapes", data_dir=tmp_path)

    def test_download_prepares(self, tmp_path):
        data = from_tfds(
            "two_tasks",
            ["label"],
            inputs="image",
            data_dir=tmp_path,
            download=True,
        )
        assert sum(len(x) for x, _ in data) == 40


class TestCityscapes:
    """The catalogue's own builder, on files of the real form and size."""

    CITIES = {"train": "aachen", "val": "munster", "test": "berlin"}

    @pytest.fixture
    def folder(self, tmp_path):
        manual = tmp_path / "downloads" / "manual"
        manual.mkdir(parents=True)
        shape = (1024, 2048)

        def png(number, kind):
            if kind.startswith(("left", "right")):
                array = np.full((*shape, 3), number, "uint8")
            elif kind == "gtFine":
                array = np.full(shape, 7 + number, "uint8")  # 7: road
                array[:512] = 0  # not evaluated
            else:
                array = np.full(shape, number * 1000, "uint16")
                array[:, :1024] = 0  # not measured
            file = tmp_path / "x.png"
            Image.fromarray(array).save(file, compress_level=1)
            return file.read_bytes()

        for kind, archive, suffix in (
            ("leftImg8bit", "leftImg8bit_trainvaltest.zip", "leftImg8bit"),
            ("rightImg8bit", "rightImg8bit_trainvaltest.zip", "rightImg8bit"),
            ("gtFine", "gtFine_trainvaltest.zip", "gtFine_labelIds"),
            ("disparity", "disparity_trainvaltest.zip", "disparity"),
        ):
            with zipfile.ZipFile(manual / archive, "w") as file:
                for split, city in self.CITIES.items():
                    for i in range(3 if split == "train" else 1):
                        name = f"{city}_{i:06}_000019_{suffix}.png"
                        file.writestr(
                            f"{kind}/{split}/{city}/{name}", png(i, kind)
                        )
        return tmp_path

    def test_segmentation_and_disparity(self, folder):
        data = from_tfds(
            "cityscapes", image_size=(8, 16), data_dir=folder, download=True
        )
        x, y = first(data)
        assert x.shape == (3, 8, 16, 3)
        assert list(y) == ["segmentation", "disparity"]
        numbers = x[:, 0, 0, 0].astype(int)
        assert sorted(numbers) == [0, 1, 2]
        # labelIds 7 and 8 are classes 0 and 1; 9 (parking) is not evaluated.
        classes = y["segmentation"]
        assert classes.shape == (3, 8, 16, 1)
        assert (classes[:, :4] == -1).all()
        for row, number in enumerate(numbers):
            assert (classes[row, 4:] == [0, 1, -1][number]).all()
            disparity = y["disparity"][row, :, :, 0]
            assert np.isnan(disparity[:, :8]).all()
            # 0 is 'not measured'; 1000 / 256 and 2000 / 256 are 3 and 7.
            expected = [np.nan, 3.0, 7.0][number]
            np.testing.assert_array_equal(disparity[:, 8:], expected)
        # From the other config the same comes out.
        _, other = first(
            from_tfds(
                "cityscapes/stereo_disparity",
                ["segmentation"],
                image_size=(8, 16),
                data_dir=folder,
            )
        )
        np.testing.assert_array_equal(other["segmentation"], classes)


class TestErrors:
    def test_unknown_feature(self):
        with pytest.raises(ValueError, match="Did you mean") as error:
            from_tfds("celeb_a", {"smiling": "attributes/Smilling"})
        message = str(error.value)
        assert "'attributes/Smiling'" in message
        for path in ("image", "landmarks/nose_x", "attributes/Young"):
            assert f"\n  {path}: " in message
        with pytest.raises(ValueError, match="Ready-made tasks: .*disparity"):
            from_tfds("cityscapes", ["depth"])
        with pytest.raises(ValueError, match=r"(?s)Received: 'picture'.*image"):
            from_tfds("celeb_a", inputs="picture")

    @pytest.mark.parametrize("tasks", [None, {}, [], "label", 3])
    def test_no_tasks(self, tasks):
        with pytest.raises(ValueError, match=r"(?s)`tasks` must.*label: int64"):
            from_tfds("mnist", tasks, inputs="image")

    def test_no_inputs(self):
        with pytest.raises(
            ValueError, match=r"(?s)`inputs` must.*image: uint8"
        ):
            from_tfds("mnist", ["label"])

    def test_a_feature_of_another_config(self):
        with pytest.raises(ValueError, match="user_gender"):
            from_tfds("movielens/25m-ratings", ["gender"])

    def test_unknown_data_set(self):
        with pytest.raises(ValueError, match="celeba not found"):
            from_tfds("celeba")

    def test_without_tensorflow_datasets(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
        with pytest.raises(ImportError, match=r"mtlkeras\[tfds\]"):
            from_tfds("celeb_a")


def test_classes_are_those_of_cityscapes():
    ids = np.arange(35, dtype="uint8")
    found = tfds_recipes.class_of(tf.constant(ids)).numpy()
    # trainId by labelId, as in cityscapesScripts' labels.py.
    expected = [-1] * 7 + [0, 1, -1, -1, 2, 3, 4, -1, -1, -1, 5, -1, 6, 7, 8]
    expected += [9, 10, 11, 12, 13, 14, 15, -1, -1, 16, 17, 18, -1]
    np.testing.assert_array_equal(found, expected)
