"""GradNorm's toy: regressions that differ in nothing but their scale.

Task i is `sigma_i tanh((B + E_i) x)`: 250 inputs, 100 outputs, a common matrix
`B` and a small one of its own. Papers and code differ in the law of the inputs;
here they are normal with standard deviation 0.01, with which tanh is neither
linear nor saturated. The network gets them divided by that.
"""

import keras
import numpy as np

from benchmarks.quality.problems.trained import TrainedProblem

INPUTS, OUTPUTS = 250, 100
COMMON, OWN, SPREAD = 10.0, 3.5, 0.01  # standard deviations


class GradnormToy(TrainedProblem):
    """Squared errors divided by the square of each task's scale.

    Args:
        scales: List with `sigma_i` for each task.
        rows: Rows to train on.
        held_out: Rows to validate and rows to test on.
    """

    def __init__(
        self,
        scales=(1.0, 100.0),
        rows=10_000,
        held_out=1000,
        epochs=10,
        batch_size=100,
        patience=5,
        seed=123,
    ):
        super().__init__(epochs, batch_size, patience)
        self.scales = {f"scale_{scale:g}": scale for scale in scales}
        self.losses = dict.fromkeys(self.scales, "mse")
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in self.scales
        }
        generator = np.random.default_rng(seed)
        common = generator.normal(0, COMMON, (INPUTS, OUTPUTS))
        own = generator.normal(0, OWN, (len(scales), INPUTS, OUTPUTS))
        self.data = []
        for count in (rows, held_out, held_out):
            x = generator.normal(0, SPREAD, (count, INPUTS))
            y = {
                task: (scale * np.tanh(x @ (common + own[i]))).astype("float32")
                for i, (task, scale) in enumerate(self.scales.items())
            }
            self.data.append(((x / SPREAD).astype("float32"), y))

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = x = keras.Input((INPUTS,))
        for _ in range(4):
            x = layers.Dense(100, activation="relu")(x)
        x = layers.Dropout(setting.get("dropout", 0.0))(x)
        return inputs, {t: layers.Dense(OUTPUTS, name=t)(x) for t in tasks}

    def measure(self, task, labels, outputs):
        error = np.mean((labels - outputs) ** 2) / self.scales[task] ** 2
        return {f"{task}_error": error}

    def constant(self, task, train_labels, labels):
        return np.broadcast_to(train_labels.mean(0), labels.shape)
