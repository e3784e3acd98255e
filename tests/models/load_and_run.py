"""Loads what was exported and saved, knowing nothing of mtlkeras.

Run as `python load_and_run.py FOLDER`; writes `FOLDER/results.npz`.
"""

import contextlib
import io
import pathlib
import sys

import numpy as np
import tensorflow as tf
from tensorflow.python.tools import saved_model_cli


def run_signatures(folder, x):
    """Dict from `signature/output` to array."""
    loaded = tf.saved_model.load(str(folder))
    results = {}
    for key, signature in loaded.signatures.items():
        _, specs = signature.structured_input_signature
        outputs = signature(**{name: tf.constant(x[name]) for name in specs})
        results[f"{key}/inputs"] = sorted(specs)
        results |= {f"{key}/{n}": t.numpy() for n, t in outputs.items()}
    return results


def run_command_line(*arguments):
    """Runs `saved_model_cli`; returns what it prints."""
    printed = io.StringIO()
    sys.argv = ["saved_model_cli", *map(str, arguments)]
    with contextlib.redirect_stdout(printed):
        try:
            saved_model_cli.main()
        except SystemExit as error:  # how absl ends a program
            if error.code:
                raise
    return printed.getvalue()


def main(folder):
    x = dict(np.load(folder / "inputs.npz"))
    results = run_signatures(folder / "model", x)
    shown = run_command_line("show", "--dir", folder / "model", "--all")
    run_command_line(
        *("run", "--dir", folder / "model", "--tag_set", "serve"),
        *("--signature_def", "right", "--outdir", folder / "out"),
        *("--inputs", f"text={folder / 'inputs.npz'}[text]"),
    )
    alone = tf.keras.models.load_model(folder / "left.keras")
    tensors = {name: tf.constant(value) for name, value in x.items()}
    results["alone"] = alone.predict(tensors, verbose=0)
    results["shown"] = shown
    if any(name.partition(".")[0] == "mtlkeras" for name in sys.modules):
        raise RuntimeError("Something imported mtlkeras.")
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
