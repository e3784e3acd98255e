"""What a result file holds, and what of it a clock or the machine decides."""

from numbers import Real

RESULT = {
    "experiment": str,
    "method": str,
    "definition": dict,
    "config": dict,
    "task_names": list,
    "metrics": dict,  # metric -> {"task": ..., "higher_is_better": ...}
    "cells": list,
}
CELL = {
    "stage": str,  # "trial" (validation only) or "test"
    "tasks": list,
    "setting": dict,
    "seed": int,
    "score": (Real, type(None)),  # validation, lower is better
    "validation": dict,
    "test": dict,  # empty for a trial: the test set is not looked at
    "steps": int,
    "samples": int,
    "epoch": (int, type(None)),  # that was kept
    "error": (str, type(None)),
    # From here on measured, and so unlike in two runs.
    "seconds": Real,  # processor time of the process, all of the cell
    "training_seconds": Real,  # the same without the first epoch's tracing
    "wall_seconds": Real,
    "peak_bytes": int,
    "versions": dict,
    "date": str,
}
MEASURED = (
    "seconds",
    "training_seconds",
    "wall_seconds",
    "peak_bytes",
    "versions",
    "date",
)


def check_result(result):
    """Raises a `ValueError` if a result is not what the schema says."""
    check_fields(result, RESULT, "A result")
    metrics = set(result["metrics"])
    for cell in result["cells"]:
        check_fields(cell, CELL, "A cell")
        if cell["stage"] not in ("trial", "test"):
            raise ValueError(
                "A cell's `stage` must be 'trial' or 'test'. Received: "
                f"{cell['stage']!r}"
            )
        if cell["stage"] == "trial" and cell["test"]:
            raise ValueError(
                "A trial must not know the test set. Received: "
                f"test={cell['test']}"
            )
        for split in ("validation", "test"):
            strange = set(cell[split]) - metrics
            if strange or not all(
                isinstance(value, (Real, type(None)))
                for value in cell[split].values()
            ):
                raise ValueError(
                    f"`{split}` must hold numbers for metrics out of "
                    f"{sorted(metrics)}. Received: {cell[split]}"
                )


def check_fields(found, schema, what):
    if set(found) != set(schema):
        raise ValueError(
            f"{what} must hold {sorted(schema)}. Received: {sorted(found)}"
        )
    for name, kind in schema.items():
        if not isinstance(found[name], kind):
            raise ValueError(
                f"{what}'s `{name}` must be {kind}. Received: {found[name]!r}"
            )


def reproducible(cell):
    """A cell without what is measured: two runs of it are equal."""
    return {k: v for k, v in cell.items() if k not in MEASURED}
