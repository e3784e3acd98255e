"""One process of a search on several machines; see test_workers.py.

What it is, chief or worker, says its environment, as Keras Tuner reads it.
"""

import json
import sys
import time

import keras_tuner
from tuning import DATA, FIT, build

from mtlkeras.tuner import MultiTaskHyperModel

_sleep = time.sleep


def main(folder):
    # The chief looks every 20 seconds whether all workers have gone.
    time.sleep = lambda seconds: _sleep(min(seconds, 0.2))
    hypermodel = MultiTaskHyperModel(
        build,
        strategies=["joint", "alternating"],
        aggregators=[None, "cagrad"],
        learning_rate=(1e-3, 1e-1),
        baselines="train",
    )
    tuner = keras_tuner.RandomSearch(
        hypermodel,
        hypermodel.objective,
        max_trials=3,
        seed=0,
        directory=folder,
        project_name="search",
    )
    tuner.search(*DATA, **{**FIT, "epochs": 1})
    if "chief" in tuner.tuner_id:
        return
    (best,) = tuner.oracle.get_best_trials()
    (model,) = tuner.get_best_models()
    (values,) = hypermodel.baselines.trained.values() or [None]
    result = {
        "best": best.trial_id,
        "score": best.score,
        "strategy": type(model.update_strategy).__name__,
        "baselines": values,
    }
    print("RESULT", json.dumps(result))


main(sys.argv[1])
