import keras

from mtlkeras.linalg.weighted_choice import choice_among, weighted_choice
from mtlkeras.strategies.update_strategy import UpdateStrategy, check_seed


@keras.saving.register_keras_serializable("mtlkeras")
class Sampled(UpdateStrategy):
    """One task per batch, drawn at random.

    Each batch trains one task, drawn with the given probabilities,
    independently of the earlier draws. As `RoundRobin`, but tasks may be
    visited at different rates, e.g. in proportion to their data. The draw is a
    function of the seed and of the batch counter, so a resumed run goes on
    with the same sequence.

    In a batch that lacks labels the draw is among the tasks that have some,
    with probabilities in proportion: where the drawn task has none, another
    one is drawn. So batches of one task, as `datasets.interleave` makes them,
    train that task whatever the probabilities, unless its own is 0. A batch
    without any label does nothing.

    Args:
        probabilities: Dict `{task: probability}` or `None` for uniform. Must
            name every task, be non-negative and sum to 1. Defaults to `None`.
        task_slots: Boolean. `False` keeps one optimizer state in common.
            Defaults to `True`.
        seed: Integer or `None`. Defaults to `None` (drawn, and then saved).
        task_learning_rates: Dict `{task: factor}`. Defaults to `None`.

    Example:

    >>> sampled = Sampled({"left": 0.0, "right": 1.0}, seed=0)
    >>> sampled.bind(("left", "right"))
    >>> int(sampled.select_group(7))
    1
    """

    one_group_per_step = True

    def __init__(
        self,
        probabilities=None,
        task_slots=True,
        seed=None,
        task_learning_rates=None,
    ):
        super().__init__(task_slots, task_learning_rates)
        if probabilities is not None:
            valid = isinstance(probabilities, dict) and all(
                isinstance(p, (int, float)) and p >= 0
                for p in probabilities.values()
            )
            if not valid or abs(sum(probabilities.values()) - 1.0) > 1e-6:
                raise ValueError(
                    "Argument `probabilities` must be a dict from task names "
                    "to non-negative numbers that sum to 1. Received: "
                    f"probabilities={probabilities!r}"
                )
            probabilities = {
                name: float(p) for name, p in probabilities.items()
            }
        self.probabilities = probabilities
        self.seed = check_seed(seed)

    def task_groups(self, task_names):
        if self.probabilities is not None and set(self.probabilities) != set(
            task_names
        ):
            raise ValueError(
                "Argument `probabilities` must name each of the model's tasks "
                f"{list(task_names)} once. Received: "
                f"probabilities={self.probabilities!r}"
            )
        return tuple((name,) for name in task_names)

    def select_group(self, step):
        return weighted_choice(self._in_order(), self.seed, step)

    def select_labelled_group(self, step, labelled):
        return choice_among(
            labelled,
            self.select_group(step),
            self._in_order(),
            self.seed,
            step,
        )

    def _in_order(self):
        names = self._task_names
        probabilities = self.probabilities or {}
        return [probabilities.get(name, 1.0 / len(names)) for name in names]

    def get_config(self):
        return {
            "probabilities": self.probabilities,
            **super().get_config(),
            "seed": self.seed,
        }
