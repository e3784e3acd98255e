import keras
import numpy as np
from keras import ops

from mtlkeras.linalg.counter_hash import random_permutation
from mtlkeras.strategies.task_affinity import (
    TaskAffinity,
    import_affinity_propagation,
)
from mtlkeras.strategies.update_strategy import (
    UpdateStrategy,
    as_integer,
    check_seed,
)


@keras.saving.register_keras_serializable("mtlkeras")
class AffinityGroups(UpdateStrategy):
    """Groups of tasks that were measured to help one another, in turn.

    Selective task group updates: a batch visits the groups in random order,
    each with a forward pass of all tasks and one update of the shared
    variables and of the members' heads, for the sum of the members' losses.
    What the update of group `G` does to the loss of every task `t` is credited
    to its members:

    ```
    r_t     = (L_t before - L_t after) / (|L_t before| |G|)
    A[s, t] <- (1 - decay) A[s, t] + decay r_t     for s in G, every t
    ```

    with two exceptions inside the group: `A[s, s]` skips negative `r_s`, and
    where `r_s` and `r_t` have opposite signs, `-max(r_s, r_t)` counts. From
    time to time the groups are formed anew, by affinity propagation on

    ```
    X = (Y + Y^T) / 2,   Y[s, t] = A[s, t] / A[t, t]
    ```

    so that 1 means: a step for the other task helps as much as an own one.

    Choose it when there are several tasks, nothing is known of how they
    relate, and `random_groups` or `alternating` do better than `joint`. At
    first every task is a group of its own, and a batch costs as much as with
    `alternating`. To train on with the groups that were found, and with
    optimizer slots per group:
    `model.fit(strategy=Grouped(model.update_strategy.groups))`.

    A batch with `K` groups costs `K` forward and backward passes of the
    shared part and of all heads, and one more forward pass at its end, which
    measures the last group. Groups change without retracing.

    Args:
        decay: Float above 0, at most 1. The weight of a new measurement. The
            authors take 1e-3 for 4 or 5 tasks and 1e-4 for 11. Defaults to
            `1e-3`.
        warmup: Integer. Number of batches before groups are formed first.
            Defaults to `100`, as the authors'.
        regroup: `"epoch"`, or an integer: form groups after every `regroup`
            batches (the authors: after each). With `steps_per_execution` it
            happens at the end of an execution. Defaults to `"epoch"`.
        preference: Float: how much of `X` two tasks need to go together, or
            `"median"` of `X`, the authors' choice, which always forms groups,
            by chance if there are none. Defaults to `0.4`.
        task_slots: Boolean. `True` keeps slots for the shared variables per
            task, and a group uses those of its first task. `False` keeps one
            optimizer state in common, as the authors do. With an optimizer
            that has momentum, each step then carries those of other tasks and
            is credited with what they do: unrelated tasks seem to help one
            another a little, and related ones are harder to tell. Defaults to
            `True`.
        seed: Integer or `None`. Seed of the order. Defaults to `None` (drawn,
            and then saved).

    Raises:
        ValueError: If an argument is not as above.
        ImportError: After the first batch, if scikit-learn is not installed.

    Example:

    >>> inputs = keras.Input((4,))
    >>> trunk = keras.layers.Dense(8)(inputs)
    >>> outputs = {n: keras.layers.Dense(1)(trunk) for n in ("left", "right")}
    >>> model = mtlkeras.MultiTaskModel(inputs, outputs)
    >>> model.compile("sgd", "mse", strategy="affinity_groups")
    >>> model.update_strategy.groups
    (('left',), ('right',))
    >>> model.update_strategy.affinity.shape
    (2, 2)

    References:
        - [Jeong and Yoon, 2025: Selective Task Group Updates for Multi-Task
          Optimization](https://arxiv.org/abs/2502.11986). Formulas and
          defaults were read in the authors' code; the paper's results were not
          reproduced.
        - [Frey and Dueck, 2007: Clustering by Passing Messages Between Data
          Points](https://doi.org/10.1126/science.1136800)

    Departures:
        - The group that made a step is credited with it. As we read the
          authors' code, it credits the group visited next.
        - So a single group needs no second visit in a batch, and all groups
          are credited, at the price of one more forward pass.
        - Groups are formed outside of the graph and not for each batch.
        - `task_slots` is `True`: with Adam and one state in common, planted
          families of tasks were found less often.
        - `preference` is 0.4: the median finds groups among unrelated tasks.
        - Losses may be negative: gains are relative to their size.
        - Tasks without labels, or whose loss is not finite, are neither
          credited nor measured, and only members that ran count in `|G|`.
        - The learning rate is that of the batch, and decoupled weight decay
          happens once per batch, as with every strategy here.
    """

    regroups = "measured"
    shuffle = True

    def __init__(
        self,
        decay=1e-3,
        warmup=100,
        regroup="epoch",
        preference=0.4,
        task_slots=True,
        seed=None,
    ):
        super().__init__(task_slots)
        if not is_number(decay) or not 0 < decay <= 1:
            raise ValueError(
                "Argument `decay` must be a number above 0 and at most 1. "
                f"Received: decay={decay!r}"
            )
        if not is_integer(warmup) or warmup < 0:
            raise ValueError(
                "Argument `warmup` must be an integer of at least 0, the "
                f"number of batches. Received: warmup={warmup!r}"
            )
        if regroup != "epoch" and not (is_integer(regroup) and regroup > 0):
            raise ValueError(
                "Argument `regroup` must be 'epoch' or a positive integer, the "
                f"number of batches. Received: regroup={regroup!r}"
            )
        if preference != "median" and not (
            is_number(preference) and np.isfinite(preference)
        ):
            raise ValueError(
                "Argument `preference` must be 'median' or a finite number, "
                f"such as 0.4. Received: preference={preference!r}"
            )
        self.decay = decay
        self.warmup = warmup
        self.regroup = regroup
        self.preference = preference
        self.seed = check_seed(seed)

    @property
    def affinity(self):
        """`A`, the effect of steps of row tasks on the losses of column tasks.

        A NumPy array of shape `[num_tasks, num_tasks]`, in the order of the
        model's tasks.
        """
        if self.state is None:
            raise ValueError(
                f"The affinities of {self!r} are known once it is in force in "
                "a model. Pass it to `model.compile(strategy=...)` or "
                "`model.fit(strategy=...)` first."
            )
        return np.array(ops.convert_to_numpy(self.state.matrix))

    def bind(self, task_names):
        if self._task_names not in (None, tuple(task_names)):
            raise ValueError(
                f"{self!r} is in use for the tasks {list(self._task_names)}. "
                f"Received a model with the tasks {list(task_names)}. Make a "
                "new one."
            )
        super().bind(task_names)
        if self.state is None:
            self.state = TaskAffinity(len(task_names), self.decay)

    def task_groups(self, task_names):
        return tuple((name,) for name in task_names)

    def assign_groups(self, draw):
        return ops.copy(self.state.assigned)

    def order_groups(self, step):
        """Random order of the groups, `[num_tasks]`.

        Indices for which there is no group come at the end.
        """
        count = len(self._task_names)
        order = random_permutation(self.seed, step, count)
        no_group = ops.greater(order, ops.max(self.assign_groups(None)))
        keys = ops.cast(no_group, "int64") * count + np.arange(count)
        return ops.take(order, ops.argsort(keys))

    def finish_batch(self, optimizer):
        # To be told after the first batch, not after a long epoch.
        import_affinity_propagation()
        if self.regroup != "epoch":
            step = as_integer(optimizer.iterations)
            formed_at = as_integer(self.state.formed_at)
            if step // self.regroup > formed_at // self.regroup:
                self._form_groups(step)

    def finish_epoch(self, optimizer):
        if self.regroup == "epoch":
            self._form_groups(as_integer(optimizer.iterations))

    def _form_groups(self, step):
        if step >= self.warmup:
            self.state.form_groups(self.preference, step)

    def get_config(self):
        return {
            "decay": self.decay,
            "warmup": self.warmup,
            "regroup": self.regroup,
            "preference": self.preference,
            "task_slots": self.task_slots,
            "seed": self.seed,
        }


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)
