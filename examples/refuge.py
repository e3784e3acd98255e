"""Reads the pictures of the REFUGE challenge, for `glaucoma.py`.

Whoever may use them downloads them from https://refuge.grand-challenge.org and
unpacks the archives into one folder:

    Training400/Glaucoma/g0001.jpg, Training400/Non-Glaucoma/n0001.jpg, ...
    Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp, ...
    Annotation-Training400/Fovea_location.xlsx
    REFUGE-Validation400/V0001.jpg, ...
    REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp, ...
    REFUGE-Validation400-GT/Fovea_locations.xlsx
    Test400/T0001.jpg, ...
    REFUGE-Test-GT/Disc_Cup_Masks/.../T0001.bmp, ...
    REFUGE-Test-GT/Glaucoma_label_and_Fovea_location.xlsx

Files are told by their names and may lie deeper: `g` and `n` begin the names of
training pictures with and without glaucoma, `V` those for validation, `T` those
for test. In a mask 0 is the cup, 128 the rest of the disc and 255 what is
around it. The tables have the columns `ImgName`, `Fovea_X`, `Fovea_Y` (pixels,
counted from 1) and, but for training, one whose name has "Label" in it.
"""

from pathlib import Path

import fundus
import keras
import numpy as np

SPLITS = {"train": ("g", "n"), "val": ("V",), "test": ("T",)}


def load_refuge(folder, size):
    """Reads the three splits.

    Args:
        folder: String or `Path` with the files as above.
        size: Integer. Pictures and masks are scaled to this height and width.

    Returns:
        A dict from `"train"`, `"val"` and `"test"` to `x, y, ratio`, as those
        of `fundus.fundus_pictures`. Where there is no label, mask or position
        of the fovea the target is NaN: unlabelled for mtlkeras. `ratio` is
        `None`.

    Raises:
        SystemExit: If a split has no pictures, or if openpyxl is missing.
    """
    folder = Path(folder)
    pictures, masks = find(folder, "*.jpg"), find(folder, "*.bmp")
    rows = {}
    for table in find(folder, "*.xlsx").values():
        rows.update(read_table(table))
    splits = {}
    for split, letters in SPLITS.items():
        names = sorted(name for name in pictures if name.startswith(letters))
        if not names:
            raise SystemExit(
                f"`--refuge` needs a folder with the {split} pictures, whose "
                f"names begin with {' or '.join(letters)}. Found none below "
                f"{folder}; see the top of examples/refuge.py for the files."
            )
        eyes = [
            read_eye(pictures[name], masks.get(name), rows.get(name, {}), size)
            for name in names
        ]
        x = np.stack([picture for picture, _ in eyes])
        y = {
            task: np.stack([targets[task] for _, targets in eyes])
            for task in ("glaucoma", "disc", "cup", "fovea")
        }
        splits[split] = (x, y, None)
    return splits


def find(folder, pattern):
    """Files by the part of their names before the dot."""
    # Archives made on a Mac have hidden twins of all files.
    files = [f for f in folder.rglob(pattern) if not f.name.startswith(".")]
    return {file.stem: file for file in sorted(files)}


def read_table(path):
    """Rows of a table as dicts from column to value, by picture."""
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise SystemExit(
            "`--refuge` reads tables with openpyxl, but the package "
            f"`{error.name}` is not installed. Install it with: "
            "`pip install openpyxl`"
        ) from error
    book = load_workbook(path, data_only=True)
    header, *rows = book.active.iter_rows(values_only=True)
    book.close()
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    return {
        Path(row["ImgName"]).stem: row for row in rows if row.get("ImgName")
    }


def read_eye(picture_path, mask_path, row, size):
    shape = (size, size)
    original = keras.utils.load_img(picture_path)
    width, height = original.size
    picture = np.asarray(original.resize(shape, resample=2), "float32") / 255
    unknown = np.full((size, size, 1), np.nan, "float32")
    disc = cup = fovea = unknown
    if mask_path is not None:
        mask = keras.utils.load_img(
            mask_path,
            color_mode="grayscale",
            target_size=shape,
            interpolation="nearest",
        )
        mask = np.asarray(mask)[..., None]
        disc, cup = (np.float32(mask < limit) for limit in (192, 64))
    # A position of 0, 0 stands for a fovea that is not in the picture.
    if row.get("Fovea_X") and row.get("Fovea_Y"):
        pixels = np.arange(size) + 0.5
        x, y = np.meshgrid(pixels / size, pixels / size)
        position = (
            (float(row["Fovea_X"]) - 0.5) / width,
            (float(row["Fovea_Y"]) - 0.5) / height,
        )
        heat = fundus.heat_map(x, y, position, fundus.HEAT_VARIANCE)
        fovea = heat[..., None].astype("float32")
    return picture, {
        "glaucoma": np.array([read_label(picture_path, row)], "float32"),
        "disc": disc,
        "cup": cup,
        "fovea": fovea,
    }


def read_label(picture_path, row):
    if picture_path.name.startswith(SPLITS["train"]):
        return picture_path.name.startswith("g")
    labels = [row[name] for name in row if name and "Label" in str(name)]
    return np.nan if not labels or labels[0] is None else labels[0]
