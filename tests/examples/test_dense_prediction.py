import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

import mtlkeras

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("dense_prediction")


@pytest.fixture
def patches(example):
    return example.stereo_patches


@pytest.fixture
def few_patches(patches, monkeypatch):
    """Fewer training patches, where they do not matter."""
    monkeypatch.setattr(patches, "STRIDE", 128)


def textured_pair(disparity, seed=0):
    """A pair whose right picture is the left one moved by the disparity."""
    height, width = disparity.shape
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 256, (height, width, 3), dtype="uint8")
    columns = np.maximum(np.arange(width) - disparity.astype(int), 0)
    left = np.take_along_axis(right, columns[..., None], axis=1)
    return left, right


# -- scores against scikit-learn and closed forms -----------------------------


def test_mean_iou(example):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, (3, 8, 8))
    scores = rng.normal(size=(3, 8, 8, 7))
    expected = metrics.jaccard_score(
        y.ravel(),
        scores.argmax(-1).ravel(),
        labels=range(5),
        average="macro",
    )
    assert example.mean_iou(y, scores) == pytest.approx(expected)


def test_edge_f1(example):
    rng = np.random.default_rng(0)
    y = (rng.random((3, 8, 8, 1)) < 0.3).astype("float32")
    found = rng.random((3, 8, 8, 1))
    expected = metrics.f1_score(y.ravel(), found.ravel() > 0.5)
    assert example.edge_f1(y, found) == pytest.approx(expected)
    assert example.edge_f1(y, 0 * found) == 0


def test_average_precision_of_the_labelled_pixels(example):
    rng = np.random.default_rng(0)
    y = (rng.random((3, 8, 8, 1)) < 0.3).astype("float32")
    found = rng.random((3, 8, 8, 1))
    y[0] = np.nan
    expected = metrics.average_precision_score(y[1:].ravel(), found[1:].ravel())
    assert example.average_precision(y, found) == pytest.approx(expected)


def test_normal_angle(example):
    angle = np.radians([0, 10, 40, 180])
    y = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    found = np.broadcast_to([1.0, 0.0, 0.0], y.shape)
    assert example.normal_angle(y, found) == pytest.approx((10 + 40 + 180) / 4)


def test_errors_leave_unlabelled_pixels_out(example):
    y = np.array([[1.0, np.nan, 3.0]])
    found = np.array([[2.0, 9.0, 3.0]])
    assert example.absolute_error(y, found) == pytest.approx(0.5)
    assert example.pixel_error(y, found) == pytest.approx(5.0)


# -- methods ------------------------------------------------------------------


def test_methods_stand_for_strategies_and_aggregators(example):
    inputs = example.METHODS
    assert len(set(inputs)) == len(inputs)
    for method in set(inputs) - {"single", "weighted"}:
        update = example.update_of(method, seed=3)
        name = method.partition("@")[0]
        if name in mtlkeras.strategies.ids():
            strategy = mtlkeras.strategies.get(update["strategy"])
            assert type(strategy) is type(mtlkeras.strategies.get(name))
            assert "aggregator" not in update
        else:
            assert update["strategy"] == "joint"
            aggregator = update["aggregator"]
            assert type(aggregator) is type(mtlkeras.aggregators.get(name))
            expected = "features" if "@features" in method else "parameters"
            assert aggregator.gradients_at == expected
    assert example.update_of("random_groups", seed=3)["strategy"].seed == 3


def test_tasks_share_all_but_their_heads(example):
    tasks = ("segmentation", "depth", "normals", "edges")
    model = example.build_model(tasks, (64, 64, 3))
    assert model.task_names == tasks
    for task in tasks:
        own = model.task_variables(task)
        assert sum(v.ndim == 4 for v in own) == 2
    assert 230_000 < model.count_params() < 250_000


def run(example, capsys, *arguments):
    example.main([*arguments])
    return capsys.readouterr().out


def test_scenes_run(example, capsys, tmp_path):
    out = run(
        example,
        capsys,
        *"--methods alternating --steps 2 --batch-size 2 --size 16".split(),
        *"--num-test 3 --seeds 4 --show alternating".split(),
        *["--output", str(tmp_path / "new")],
    )
    table = out[out.index("\nmethod") :].splitlines()
    rows = [line.split() for line in table if "seconds" not in line]
    rows = {row[0]: row[1:] for row in rows if len(row) == 6}
    assert list(rows) == ["alternating"]
    for numbers in rows.values():
        assert np.isfinite([float(number) for number in numbers]).all()
    # sizes, as an empty file would satisfy mere existence
    picture = tmp_path / "new" / "dense_prediction.png"
    assert picture.stat().st_size > 10_000


def test_table_shows_the_spread_over_seeds(example, capsys):
    runs = [({"depth": 1.0}, 10.0), ({"depth": 1.5}, 30.0)]
    example.print_table({"joint": runs}, ("depth", "edges"))
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split() == "joint 1.25 ± 0.25 - 20 ± 10".split()


def test_unknown_method(example, tmp_path):
    with pytest.raises(ValueError, match="no_such_rule"):
        example.main(
            f"--methods no_such_rule --steps 1 --batch-size 1 --size 16 "
            f"--num-test 1 --output {tmp_path}".split()
        )


# -- the stereo pair ----------------------------------------------------------


def test_stereo_runs(
    example, patches, capsys, tmp_path, monkeypatch, few_patches
):
    disparity = np.full((500, 741), 12.0)
    disparity[:, 300:500] = 40.0
    left, right = textured_pair(disparity)
    disparity[200:230, 100:400] = np.inf
    monkeypatch.setattr(patches, "load_pair", lambda: (left, right, disparity))
    out = run(
        example,
        capsys,
        *"--stereo --methods single --steps 2 --batch-size 2".split(),
        *["--output", str(tmp_path)],
    )
    matched = next(
        x for x in out.splitlines() if x.startswith("block matching")
    )
    # Right but for the pixels beside a jump and what a jump hides.
    assert float(matched.split()[2]) < 3
    assert "One scene" in out
    assert (tmp_path / "stereo.png").stat().st_size > 10_000


def test_block_matching_finds_the_shift(patches, few_patches):
    disparity = np.full((500, 741), 26.0)
    (_, _), (x, y) = patches.stereo_patches(
        *textured_pair(disparity), disparity
    )
    np.testing.assert_allclose(x[..., 3], 2.6, rtol=1e-6)
    np.testing.assert_allclose(x[..., 4], 0, atol=1e-6)
    np.testing.assert_allclose(y["disparity"], 2.6, rtol=1e-6)
    assert (y["jumps"] == 0).all()


def test_no_row_is_in_training_and_test(patches):
    rows = np.broadcast_to(np.arange(500.0)[:, None], (500, 741))
    pictures = np.zeros((500, 741, 3), "uint8")
    train, test = patches.stereo_patches(pictures, pictures, rows)
    found = [
        set(np.unique(np.rint(y["disparity"] * 10))) for _, y in (train, test)
    ]
    assert not found[0] & found[1]
    assert found[1] == set(range(*patches.TEST_ROWS))
    # What is left of the rows is less than a patch's stride.
    assert len(found[0]) > 500 - len(found[1]) - 2 * patches.STRIDE


def test_matching_sees_nothing_beyond_its_patch(patches, few_patches):
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 500, 741, 3), dtype="uint8")
    disparity = np.ones((500, 741))
    _, (before, _) = patches.stereo_patches(left, right, disparity)
    top, bottom = patches.TEST_ROWS
    for picture in (left, right):
        picture[:top] = 0
        picture[bottom:] = 255
    _, (after, _) = patches.stereo_patches(left, right, disparity)
    np.testing.assert_array_equal(before, after)


def test_jumps(patches):
    disparity = np.full((6, 6, 1), 5.0)
    disparity[:, 4:] = 20.0
    disparity[0, 0] = np.nan
    jumps = patches.find_jumps(disparity)[..., 0]
    expected = np.zeros((6, 6))
    expected[:, 3:5] = 1
    # Itself and its neighbours: nobody knows.
    expected[0, 0] = expected[0, 1] = expected[1, 0] = np.nan
    np.testing.assert_array_equal(jumps, expected)


def test_strip_puts_test_patches_back(patches, few_patches):
    pictures = np.zeros((500, 741, 3), "uint8")
    numbers = np.arange(500.0 * 741).reshape(500, 741)
    _, (_, y) = patches.stereo_patches(pictures, pictures, numbers)
    strip = patches.as_strip(y["disparity"])[..., 0] * 10
    top, bottom = patches.TEST_ROWS
    first = max(patches.SHIFTS)
    expected = numbers[top:bottom, first : first + strip.shape[1]]
    np.testing.assert_allclose(strip, expected, rtol=1e-6)


def test_missing_scikit_image_says_what_to_install(patches, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(SystemExit, match="pip install scikit-image"):
        patches.load_pair()
