"""Linear regressions in groups: what sharing is worth where it is right.

Task t of a group is `y = a_t (u . x) + noise` with the group's direction `u` in
20 dimensions. With 15 rows, fewer than unknowns, a task alone cannot find it.
The net is linear, `y_t = h_t . (W x)` with as many rows in `W` as groups: its
optimum has the error of the noise, 0.01, plus what few rows cost.
"""

import keras
import numpy as np

from benchmarks.quality.problems.trained import TrainedProblem

INPUTS = 20
NOISE = 0.1


class LinearGroups(TrainedProblem):
    """Mean squared error of each task; its floor is 0.01.

    Args:
        groups: Number of groups.
        tasks_per_group: Tasks in each.
        rows: Rows of each task to train on, others than the other tasks'.
        held_out: Rows of each task to validate and to test on.
        passes: Passes over the rows that count as one epoch.
    """

    def __init__(
        self,
        groups=3,
        tasks_per_group=10,
        rows=15,
        held_out=500,
        epochs=30,
        batch_size=5,
        patience=10,
        passes=20,
        seed=0,
    ):
        super().__init__(epochs, batch_size, patience, passes)
        self.groups = groups
        count = groups * tasks_per_group
        self.places = {f"task_{t:02}": t for t in range(count)}
        self.losses = dict.fromkeys(self.places, "mse")
        self.metrics = {
            f"{task}_error": {"task": task, "higher_is_better": False}
            for task in self.places
        }
        generator = np.random.default_rng(seed)
        directions = generator.normal(size=(groups, INPUTS))
        factors = generator.uniform(0.5, 1.5, (count, 1))
        targets = factors * directions[np.arange(count) % groups]
        self.data = []
        for number in (rows, held_out, held_out):
            x = generator.normal(size=(number, count, INPUTS))
            y = np.einsum("nti,ti->nt", x, targets)
            y += NOISE * generator.normal(size=y.shape)
            labels = {
                task: y[:, place, None].astype("float32")
                for task, place in self.places.items()
            }
            self.data.append((x.astype("float32"), labels))

    def build(self, setting, tasks):
        layers = keras.layers
        inputs = keras.Input((len(self.places), INPUTS))
        shared = layers.Dense(self.groups, use_bias=False)(inputs)
        outputs = {
            task: layers.Dense(1, use_bias=False, name=task)(
                shared[:, self.places[task]]
            )
            for task in tasks
        }
        return inputs, outputs

    def measure(self, task, labels, outputs):
        return {f"{task}_error": np.mean((labels - outputs) ** 2)}

    def constant(self, task, train_labels, labels):
        return np.broadcast_to(train_labels.mean(0), labels.shape)
