"""One process of a search on several machines; see test_workers.py.

Whether it is the chief or a worker says its environment, as for any script
that uses Keras Tuner.
"""

import json
import os
import sys
import time
from pathlib import Path

import keras_tuner
from tuning import DATA, FIT, build

from mtlkeras.tuner import MultiTaskHyperModel

_sleep = time.sleep


def make_tuner(folder):
    hypermodel = MultiTaskHyperModel(
        build,
        strategies=["joint", "alternating"],
        aggregators=[None, "cagrad"],
        learning_rate=(1e-3, 1e-1),
        baselines="train",
    )
    return keras_tuner.RandomSearch(
        hypermodel,
        hypermodel.objective,
        max_trials=3,
        seed=0,
        directory=folder,
        project_name="search",
    )


def wait_for_all(folder, name, number):
    """A chief leaves with its last worker: one that comes later would hang."""
    (folder / f"{name}.ready").touch()
    while len(list(folder.glob("*.ready"))) < number:
        _sleep(0.1)


def main(folder, number):
    # The chief looks every 20 seconds whether all workers have gone.
    time.sleep = lambda seconds: _sleep(min(seconds, 0.2))
    tuner = make_tuner(folder)
    wait_for_all(folder, os.environ["KERASTUNER_TUNER_ID"], number)
    tuner.search(*DATA, **{**FIT, "epochs": 1})
    trained = list(tuner.hypermodel.baselines.trained.values())
    print("BASELINES", json.dumps(trained))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
