"""Arrays that are kept in a file, together with what they were made from."""

import json
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np

KEY = "made_from"


def load_or_make(path, made_from, make):
    """Loads arrays from a file, or makes them and writes the file.

    Args:
        path: String or `Path` of the file, or `None`: always made.
        made_from: Dict that decides what the arrays are, for JSON. Where the
            file holds another one, it is written anew.
        make: Function that returns a dict of arrays.

    Returns:
        A dict of arrays.

    Raises:
        ValueError: If there is a file that this function did not write.
    """
    if path is None:
        return make()
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(
            "Argument `cache` must be the path of a file, or `None`. "
            f"Received: cache={path!r}"
        )
    path = Path(path).expanduser()
    if path.exists():
        arrays = load(path, made_from)
        if arrays is not None:
            return arrays
    arrays = make()
    save(path, made_from, arrays)
    return arrays


def load(path, made_from):
    """The arrays in the file, or `None` if they were made from others."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            found = json.loads(str(stored[KEY]))
            if found != made_from:
                return None
            return {name: stored[name] for name in stored.files if name != KEY}
    except (
        EOFError,
        KeyError,
        OSError,
        TypeError,  # one array, as `np.save` writes
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(
            "Argument `cache` must name a file that is not there yet, or one "
            f"that this data set has written. Received: cache={str(path)!r}, "
            f"which cannot be read as such ({error}). Delete the file or name "
            "another one."
        ) from error


def save(path, made_from, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete: nobody ever finds half a file.
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays, **{KEY: json.dumps(made_from)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
