import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("glaucoma")


@pytest.fixture
def fundus(example):
    return example.fundus


@pytest.fixture
def refuge(example):
    return example.refuge


# -- the drawn pictures -------------------------------------------------------


def test_shapes_types_and_range(fundus):
    x, y, ratio = fundus.fundus_pictures(6, 32, seed=0)
    assert x.shape == (6, 32, 32, 3)
    assert ratio.shape == (6,)
    assert y["glaucoma"].shape == (6, 1)
    for task in ("disc", "cup", "fovea"):
        assert y[task].shape == (6, 32, 32, 1)
    for array in (x, ratio, *y.values()):
        assert array.dtype == np.float32
        assert array.min() >= 0
        assert array.max() <= 1


def test_a_picture_depends_on_its_number_and_the_seed_only(fundus):
    x, y, ratio = fundus.fundus_pictures(6, 32, seed=2)
    x_some, y_some, ratio_some = fundus.fundus_pictures(2, 32, 2, first=3)
    np.testing.assert_array_equal(x_some, x[3:5])
    np.testing.assert_array_equal(ratio_some, ratio[3:5])
    for task in y:
        np.testing.assert_array_equal(y_some[task], y[task][3:5])
    other, _, _ = fundus.fundus_pictures(6, 32, seed=3)
    assert not np.array_equal(x, other)


def test_the_ratio_is_that_of_the_masks(example, fundus):
    _, y, ratio = fundus.fundus_pictures(30, 256, seed=0)
    measured = example.vertical_ratio(y["disc"], y["cup"])
    # Masks of discs that are 50 pixels high are good to a pixel or two.
    np.testing.assert_allclose(measured, ratio, atol=0.045)
    assert np.abs(measured - ratio).mean() < 0.015
    assert (y["cup"] <= y["disc"]).mean() > 0.9999


def test_the_disc_is_bright_and_the_fovea_dark(fundus):
    x, y, _ = fundus.fundus_pictures(30, 64, seed=0)
    light = x.mean(-1)
    seen = light > 0.15  # not outside of the camera's aperture
    for i in range(30):
        disc = light[i][y["disc"][i, ..., 0] > 0.5].mean()
        fovea = light[i][y["fovea"][i, ..., 0] > 0.7].mean()
        assert disc > np.median(light[i][seen[i]]) > fovea


def test_labels_follow_the_ratio_with_noise(fundus):
    """Against the definition, by a chi-square of bins of the ratio."""
    _, y, ratio = fundus.fundus_pictures(3000, 4, seed=0)
    label = y["glaucoma"][:, 0]
    odds = (ratio - fundus.EVEN_RATIO) / fundus.RATIO_SCALE
    probability = 1 / (1 + np.exp(-odds.astype("float64")))
    bins = np.digitize(ratio, np.linspace(0.4, 0.8, 9))
    deviation = [
        (label[bins == b] - probability[bins == b]).sum() ** 2
        / (probability * (1 - probability))[bins == b].sum()
        for b in range(10)
    ]
    assert sum(deviation) < 29.6  # 10 degrees of freedom: 1 in 1000
    assert 0.2 < label.mean() < 0.4


def test_heat_map(fundus):
    x, y = np.meshgrid(np.arange(256.0), np.arange(256.0))
    heat = fundus.heat_map(x, y, (100, 40), 50.0)
    assert np.unravel_index(heat.argmax(), heat.shape) == (40, 100)
    assert heat.max() == 1
    # One standard deviation away.
    below = heat[47, 100] * (heat[48, 100] / heat[47, 100]) ** (50**0.5 - 7)
    assert below == pytest.approx(np.exp(-0.5), abs=2e-3)


# -- what is measured ---------------------------------------------------------


def test_vertical_ratio_counts_rows_of_the_largest_part(example):
    disc, cup = np.zeros((2, 3, 12, 12, 1))
    disc[0, 2:10, 3:9] = 0.9
    cup[0, 4:8, 1:11] = 0.8  # wide, but 4 rows high
    cup[0, 11, 0] = 1.0  # a speck
    disc[1, 2:10, 3:9] = 0.9  # without a cup
    cup[2, 4:8, 4:8] = 0.8  # without a disc
    np.testing.assert_allclose(example.vertical_ratio(disc, cup)[:2], [0.5, 0])
    assert np.isfinite(example.vertical_ratio(disc, cup)).all()
    cup[0] = np.nan
    unknown = np.isnan(example.vertical_ratio(disc, cup))
    np.testing.assert_array_equal(unknown, [True, False, False])


def test_auc_of_the_labelled(example):
    label = np.array([0, 0, 1, 1, np.nan, 1])
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.0, np.nan])
    assert example.auc(label, values) == pytest.approx(0.75)


def test_dice_of_the_labelled(example):
    y, found = np.zeros((2, 3, 4, 4, 1))
    y[0, :2] = 1
    found[0, 1:3] = 0.9
    y[1], found[1] = 1, 0.7
    y[2] = np.nan
    assert example.dice(y, found) == pytest.approx((0.5 + 1) / 2)


def test_fovea_error_of_the_labelled(example):
    y, found = np.zeros((2, 3, 20, 20, 1))
    y[0, 5, 5] = found[0, 8, 9] = 1
    y[1, 7, 7] = found[1, 7, 7] = 1
    y[2] = np.nan
    assert example.fovea_error(y, found) == pytest.approx(100 * 2.5 / 20)


# -- the whole ----------------------------------------------------------------

TINY = "--epochs 1 --batch-size 4 --size 32 --filters 2".split()


def test_synthetic_run(example, capsys, tmp_path):
    example.main([*TINY, "--pictures", "48", "--output", str(tmp_path / "new")])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("[SYNTHETIC] ") for line in lines)
    auc = [float(line.split()[2]) for line in lines if "  AUC " in line]
    assert len(auc) == 4
    assert auc[3] > 0.75  # of the true ratio
    assert "say nothing about medicine" in lines[-1]
    # sizes, as an empty file would satisfy mere existence
    picture = tmp_path / "new" / "glaucoma_synthetic.png"
    assert picture.stat().st_size > 10_000


def write_refuge(folder):
    """A folder as REFUGE unpacks, with drawn pictures.

    Returns:
        A dict from file names of tables to their rows.
    """
    rng = np.random.default_rng(0)
    foveas, labels = [], []
    names = [
        *[f"Training400/Glaucoma/g{i:04}" for i in range(1, 5)],
        *[f"Training400/Non-Glaucoma/n{i:04}" for i in range(1, 5)],
        *[f"REFUGE-Validation400/V{i:04}" for i in range(1, 5)],
        *[f"Test400/T{i:04}" for i in range(1, 7)],
    ]
    for number, name in enumerate(names):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (60, 80, 3), dtype="uint8")
        Image.fromarray(pixels).save(path)
        mask = np.full((60, 80), 255, "uint8")
        mask[12:48, 20:60] = 128
        mask[24:36, 30:50] = 0
        where = {
            "g": "Annotation-Training400/Disc_Cup_Masks/Glaucoma",
            "n": "Annotation-Training400/Disc_Cup_Masks/Non-Glaucoma",
            "V": "REFUGE-Validation400-GT/Disc_Cup_Masks",
            "T": "REFUGE-Test-GT/Disc_Cup_Masks/G",
        }[path.stem[0]]
        path = folder / where / f"{path.stem}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        stem = path.stem
        foveas.append(
            {"ImgName": f"{stem}.jpg", "Fovea_X": 20.5, "Fovea_Y": 30.5}
        )
        labels.append(number % 2)
    # The archives made on a Mac hold hidden twins.
    (folder / "Test400" / "._T0001.jpg").write_bytes(b"no picture")
    tables = {
        "Annotation-Training400/Fovea_location.xlsx": foveas[:8],
        "REFUGE-Validation400-GT/Fovea_locations.xlsx": [
            {**row, "Glaucoma Label": label}
            for row, label in zip(foveas[8:12], labels[8:12], strict=True)
        ],
        "REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx": [
            {**row, "Label(Glaucoma=1)": label}
            for row, label in zip(foveas[12:], labels[12:], strict=True)
        ],
    }
    # One without a fovea and without a label.
    last = tables["REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx"][-1]
    last.update({"Fovea_X": 0, "Fovea_Y": 0, "Label(Glaucoma=1)": None})
    for name in tables:
        (folder / name).touch()
    return tables


@pytest.fixture
def refuge_folder(tmp_path, refuge, monkeypatch):
    """Its tables are given without openpyxl, which may not be installed."""
    folder = tmp_path / "refuge"
    tables = write_refuge(folder)

    def read_table(path):
        rows = tables[path.relative_to(folder).as_posix()]
        return {row["ImgName"][:-4]: row for row in rows}

    monkeypatch.setattr(refuge, "read_table", read_table)
    return folder


def test_refuge_is_read(refuge, refuge_folder):
    splits = refuge.load_refuge(refuge_folder, 40)
    assert [len(x) for x, _, _ in splits.values()] == [8, 4, 6]
    x, y, ratio = splits["train"]
    assert x.shape == (8, 40, 40, 3)
    assert ratio is None
    np.testing.assert_array_equal(y["glaucoma"][:, 0], 4 * [1] + 4 * [0])
    disc, cup = np.zeros((2, 40, 40))
    disc[8:32, 10:30] = 1
    cup[16:24, 15:25] = 1
    for i in range(8):
        np.testing.assert_array_equal(y["disc"][i, ..., 0], disc)
        np.testing.assert_array_equal(y["cup"][i, ..., 0], cup)
        heat = y["fovea"][i, ..., 0]
        # (20, 30) of 80 x 60, on the border of four pixels.
        top = np.argwhere(np.isclose(heat, heat.max()))
        np.testing.assert_array_equal(
            top, [[19, 9], [19, 10], [20, 9], [20, 10]]
        )
    labels = splits["test"][1]["glaucoma"][:, 0]
    np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0, np.nan])
    assert np.isnan(splits["test"][1]["fovea"][-1]).all()
    assert not np.isnan(splits["test"][1]["fovea"][:-1]).any()


def test_refuge_without_masks_is_unlabelled(refuge, refuge_folder):
    for file in refuge_folder.rglob("V*.bmp"):
        file.unlink()
    splits = refuge.load_refuge(refuge_folder, 16)
    for task in ("disc", "cup"):
        assert np.isnan(splits["val"][1][task]).all()
        assert not np.isnan(splits["train"][1][task]).any()


def test_refuge_run(example, refuge_folder, capsys, tmp_path):
    arguments = [*TINY, "--strategy", "joint", "--refuge", str(refuge_folder)]
    example.main([*arguments, "--output", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("[REFUGE] ") for line in lines)
    assert "experts" in "".join(lines)
    assert (tmp_path / "glaucoma_refuge.png").stat().st_size > 10_000


def test_a_folder_without_pictures_is_refused(refuge, tmp_path):
    with pytest.raises(SystemExit, match="train pictures") as error:
        refuge.load_refuge(tmp_path, 16)
    assert str(tmp_path) in str(error.value)


def test_tables_are_read(refuge, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    rows = [
        ["ID", "ImgName", "Fovea_X", "Fovea_Y", "Label(Glaucoma=1)"],
        [1, "T0001.jpg", 20.5, 30.5, 1],
        [2, "T0002.jpg", 21.5, None, None],
        [None, None, None, None, None],
    ]
    for row in rows:
        book.active.append(row)
    book.save(tmp_path / "table.xlsx")
    found = refuge.read_table(tmp_path / "table.xlsx")
    assert found == {
        row[1][:-4]: dict(zip(rows[0], row, strict=True)) for row in rows[1:3]
    }


def test_missing_openpyxl_says_what_to_install(refuge, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(SystemExit, match="pip install openpyxl"):
        refuge.read_table("table.xlsx")
