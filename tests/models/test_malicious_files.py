"""A `.keras` file from a stranger runs no code unless the user allows it."""

import json
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import pytest
from nets import TASKS, losses, mlp, regression_data, values

from mtlkeras import MultiTaskModel
from mtlkeras.losses import MaskedLoss

# What an attacker would have had a victim install, or found installed. It
# leaves a mark when it is imported, looked up or called.
MODULE = """
import pathlib

mark = pathlib.Path(__file__).with_name("mark")
mark.write_text("imported")


class Evil:
    def __init__(self, *args, **kwargs):
        mark.write_text("made")

    @classmethod
    def from_config(cls, config):
        return cls()


def evil(*args, **kwargs):
    mark.write_text("called")
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that exists once the attacker's module has run."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "stranger.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    yield folder / "mark"
    sys.modules.pop("stranger", None)


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    """A trained model's file that is as it should be."""
    x, y = regression_data(rows=4)
    model = mlp()
    model.compile(
        keras.optimizers.Adam(),
        {name: MaskedLoss("mse", missing=-1.0) for name in TASKS},
        metrics={"left": [keras.metrics.MeanAbsoluteError()]},
        strategy="alternating",
        run_eagerly=True,
    )
    model.train_on_batch(x, y)
    path = tmp_path_factory.mktemp("good") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def saved(good_file, tmp_path):
    """A copy of it for the attacker."""
    return pathlib.Path(shutil.copy(good_file, tmp_path / "model.keras"))


def rewrite(path, edit_config=None, weights=None, extra=()):
    """Writes the archive anew, as an attacker may."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    if edit_config is not None:
        config = json.loads(files["config.json"])
        edit_config(config)
        files["config.json"] = json.dumps(config)
    if weights is not None:
        files["model.weights.h5"] = weights
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*files.items(), *extra]:
            archive.writestr(name, content)


CLASS = {
    "module": "stranger",
    "class_name": "Evil",
    "config": {},
    "registered_name": None,
}
FUNCTION = {
    "module": "stranger",
    "class_name": "function",
    "config": "evil",
    "registered_name": "evil",
}


def the_model(config, evil):
    config.update(evil)


def a_layer(config, evil):
    layer = config["config"]["layers"][1]
    layer.update({**evil, "name": layer["name"]})


def an_activation(config, evil):
    config["config"]["layers"][1]["config"]["activation"] = evil


def in_compile(argument):
    def place(config, evil):
        config["compile_config"][argument] = evil

    place.__name__ = argument
    return place


def inside_of_a_loss(config, evil):
    loss = config["compile_config"]["loss"]["left"]
    assert loss["class_name"] == "MaskedLoss"
    loss["config"]["loss"] = evil


def inside_of_the_strategy(config, evil):
    inner = config["compile_config"]["strategy"]["config"]
    assert "task_learning_rates" in inner
    inner["task_learning_rates"] = evil


def inside_of_an_aggregator(config, evil):
    config["compile_config"]["aggregator"] = {
        "module": "mtlkeras.aggregators.ema",
        "class_name": "EMA",
        "config": {"aggregator": evil},
        "registered_name": "mtlkeras>EMA",
    }


PLACES = [
    the_model,
    a_layer,
    an_activation,
    inside_of_a_loss,
    inside_of_the_strategy,
    inside_of_an_aggregator,
    *map(
        in_compile,
        ("optimizer", "loss", "metrics", "strategy", "aggregator", "balancer"),
    ),
]


def name_of(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("evil", [CLASS, FUNCTION], ids=["class", "function"])
@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_foreign_code_is_not_even_imported(place, evil, saved, mark):
    rewrite(saved, lambda config: place(config, evil))
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(saved)
    assert not mark.exists()
    assert "stranger" not in sys.modules


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_installed_functions_are_not_called(place, saved, tmp_path):
    """Standard modules, which are imported already, and Keras's own tools."""
    copy = tmp_path / "copy.keras"
    for evil in (
        {**CLASS, "module": "subprocess", "class_name": "Popen"},
        {**FUNCTION, "module": "os", "config": "system"},
        {**FUNCTION, "module": "builtins", "config": "exec"},
        {**FUNCTION, "module": "keras.utils", "config": "get_file"},
    ):
        shutil.copy(saved, copy)
        rewrite(copy, lambda config, evil=evil: place(config, evil))
        with pytest.raises((TypeError, ValueError)):
            keras.models.load_model(copy)


def lambda_config(mark):
    """A serialized Python lambda that leaves a mark when it is called."""
    path = str(mark)
    return keras.saving.serialize_keras_object(
        lambda *args: open(path, "w").close() or args[-1]
    )


@pytest.mark.filterwarnings("ignore:.*lambda:UserWarning")
@pytest.mark.parametrize(
    "place",
    [p for p in PLACES[2:] if p is not inside_of_the_strategy],
    ids=name_of,
)
def test_lambdas_in_the_config(place, saved, tmp_path):
    evil = lambda_config(tmp_path / "mark")
    assert evil["class_name"] == "__lambda__"
    rewrite(saved, lambda config: place(config, evil))
    refused = "deserialization of a Python lambda"
    with pytest.raises((TypeError, ValueError), match=refused):
        keras.models.load_model(saved)
    assert not (tmp_path / "mark").exists()


def test_a_lambda_layer(tmp_path):
    mark = tmp_path / "mark"
    path = str(mark)
    inputs = keras.Input((6,))
    x = keras.layers.Lambda(
        lambda x: open(path, "w").close() or x * 2.0, output_shape=(6,)
    )(inputs)
    heads = {name: keras.layers.Dense(1)(x) for name in TASKS}
    model = MultiTaskModel(inputs, heads)
    model.compile("adam", losses(), strategy="alternating")
    model.save(tmp_path / "model.keras")
    mark.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras.models.load_model(tmp_path / "model.keras")
    assert not mark.exists()
    # The attack works on who allows it, so the test above tests something.
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    loaded(np.ones((2, 6), "float32"))
    assert mark.exists()


# -- paths ---------------------------------------------------------------------


def link(name, target):
    """An archive member that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3  # Unix
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, str(target)


def test_the_archive_writes_nowhere_else(saved, tmp_path, monkeypatch):
    """Members that lead out of the folder that Keras unpacks to."""
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    outside = tmp_path / "outside"
    outside.mkdir()
    expected = values(keras.models.load_model(saved).weights)
    tricks = [
        [("../escaped", "x"), ("../../escaped", "x"), ("more", "x")],
        [(str(outside / "escaped"), "x"), ("/escaped", "x"), ("more", "x")],
        [("assets/../../../escaped", "x"), ("more", "x")],
        [("..\\..\\escaped", "x"), ("assets/more", "x")],
        [link("assets", outside), ("assets/escaped", "x")],
        [link("assets/up", ".."), ("assets/up/../escaped", "x")],
    ]
    for members in tricks:
        path = tmp_path / "tricky.keras"
        shutil.copy(saved, path)
        rewrite(path, extra=members)
        before = {p for p in tmp_path.rglob("*") if deep not in p.parents}
        try:
            loaded = keras.models.load_model(path)
        except Exception:  # refused, which is as good
            loaded = None
        after = {p for p in tmp_path.rglob("*") if deep not in p.parents}
        assert after == before, members
        assert not pathlib.Path("/escaped").exists()
        if loaded is not None:
            for a, b in zip(values(loaded.weights), expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize("kind", ["storage", "link"])
def test_weights_come_from_no_other_file(kind, saved, tmp_path):
    """HDF5 can point to other files, here to some of the victim's."""
    secret = os.fspath(tmp_path / "secret.h5")
    weights = tmp_path / "weights.h5"
    with zipfile.ZipFile(saved) as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file, h5py.File(secret, "w") as other:
        name = "layers/dense/vars/0"
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        if kind == "link":
            other.create_dataset("x", shape, dtype)
            file[name] = h5py.ExternalLink(secret, "/x")
        else:
            size = int(np.prod(shape)) * dtype.itemsize
            file.create_dataset(
                name, shape, dtype, external=[(secret, 0, size)]
            )
    rewrite(saved, weights=weights.read_bytes())
    # Before Keras 3.15 a link is not looked at, and leads nowhere.
    with pytest.raises(ValueError, match="Not allowed|'x' doesn't exist"):
        keras.models.load_model(saved)
