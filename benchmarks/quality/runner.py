"""Runs the cells of an experiment, in processes of its own."""

import datetime
import multiprocessing
import os
import platform
import sys
import time

from benchmarks.quality import problems, store
from benchmarks.quality.methods import METHODS
from benchmarks.quality.protocols import missing_cells
from benchmarks.speed import measure

# One thread per process: two processes then share two cores fairly, and sums
# are taken in the same order in every run.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def run(configs, folder, processes=2, methods=None, fresh=False):
    """Computes all missing cells of the experiments; returns the skipped.

    Args:
        configs: List of experiments.
        folder: Where the results are.
        processes: How many methods run at the same time.
        methods: List of methods to run. Defaults to all of the experiment.
        fresh: Whether stored results are dropped first.

    Returns:
        Dict from experiment to the reason why it cannot run here.
    """
    os.environ.update(ENVIRONMENT)
    # Not forked: TensorFlow's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    skipped = {}
    # New processes now and then: TensorFlow does not give all memory back.
    with context.Pool(processes, maxtasksperchild=12) as pool:
        for config in configs:
            # Asked in a process of the pool: this one needs no TensorFlow.
            task_names, reason = pool.apply(
                problems.describe, (config["problem"], config["arguments"])
            )
            if reason:
                skipped[config["name"]] = reason
                say(f"{config['name']}: skipped. {reason}")
                continue
            run_experiment(config, task_names, methods, folder, pool, fresh)
    return skipped


def run_experiment(config, task_names, methods, folder, pool, fresh):
    """All stages of an experiment, until no cell is missing."""
    results = {}
    for method in config["methods"]:
        if fresh and (not methods or method in methods):
            store.path_of(folder, config, method).unlink(missing_ok=True)
        stored = store.read_matching(folder, config, method)
        if stored:
            results[method] = stored
    while missing := {
        method: cells
        for method, cells in missing_cells(config, results, task_names).items()
        if not methods or method in methods
    }:
        work = [
            (config, method, cells, folder) for method, cells in missing.items()
        ]
        for result in pool.imap_unordered(run_method, work, chunksize=1):
            method = result["method"]
            results[method] = result
            say(f"{config['name']}: {method}, {told(result, missing[method])}")
    return results


def told(result, ran):
    """What the newest cells of a result took."""
    cells = result["cells"][-len(ran) :]
    seconds = sum(cell["seconds"] for cell in cells)
    undefined = sum(cell["error"] is not None for cell in cells)
    text = f"{len(cells)} cells, {seconds:.0f} s"
    return f"{text}, {undefined} undefined" if undefined else text


def run_method(work):
    """Runs cells of one method in this process; stores after each of them."""
    config, method, cells, folder = work
    problem = problems.get(config["problem"], config["arguments"])
    result = store.read_matching(folder, config, method) or {
        "experiment": config["name"],
        "method": method,
        "definition": METHODS[method],
        "config": config,
        "task_names": list(problem.task_names),
        "metrics": problem.metrics,
        "cells": [],
    }
    result["config"] = config
    for cell in cells:
        result["cells"].append(run_cell(problem, method, cell))
        store.write(folder, config, result)
    return result


def run_cell(problem, method, cell):
    """One run: what it found, what it took, and in which versions."""
    measure.reset_peak()
    wall, processor = time.perf_counter(), time.process_time()
    try:
        found = problem.run(METHODS[method], cell)
        error = None
    except ValueError as raised:
        # A method that is not defined for the problem, and says so.
        found, error = {}, str(raised)
    return {
        **cell,
        "score": None,
        "validation": {},
        "test": {},
        "steps": 0,
        "samples": 0,
        "epoch": None,
        "training_seconds": 0.0,
        **found,
        "error": error,
        "seconds": round(time.process_time() - processor, 3),
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "peak_bytes": measure.peak_bytes(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        ),
    }


def versions():
    import keras
    import numpy
    import tensorflow

    import mtlkeras

    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "keras": keras.__version__,
        "tensorflow": tensorflow.__version__,
        "mtlkeras": mtlkeras.__version__,
        "machine": platform.machine(),
    }


def say(text):
    print(text, file=sys.stderr, flush=True)
