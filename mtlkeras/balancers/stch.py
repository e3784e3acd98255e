import math

import keras
import numpy as np
from keras import ops

from mtlkeras.balancers.loss_balancer import LossBalancer
from mtlkeras.balancers.per_task import check_per_task, check_positive


@keras.saving.register_keras_serializable("mtlkeras")
class STCH(LossBalancer):
    """A smooth maximum of the losses (smooth Tchebycheff scalarization).

    ```
    total = mu log sum_i exp(p_i D_i / mu)                  form="linear"
    total = T mu log sum_i exp(log(D_i / nadir_i) / mu)     form="log"
    ```

    with `D_i = L_i - ideal_i` and a preference `p`. The worst task has most of
    the weight, and all of it as `mu` goes to 0, for `max <= total <= max + mu
    log T`. Choose it to reach points of the Pareto front that no weighted sum
    has as its minimum, or to hold the worst task down. Losses of the linear
    form must be in like units. The log form needs no unit: `nadir`, a typical
    large loss, takes it away.

    Args:
        mu: Positive float: how smooth the maximum is. Defaults to `1.0`, for
            losses of about 1 (LibMTL, for the log form).
        preference: Number, list or dict by task name: the positive `p_i`. A
            larger one gives a smaller loss. Defaults to `None`, `1 / T` each.
            Linear form only.
        ideal: Number, list or dict by task name: the least values that the
            losses can have. Defaults to `0.0`.
        form: `"linear"` (the paper) or `"log"` (LibMTL). Defaults to
            `"linear"`.
        nadir: Positive number, list or dict by task name. Defaults to `None`:
            the mean loss in the second half of the warm-up.
        warmup: Integer: during how many batches the log form without a given
            `nadir` trains on the sum of `log(L_i - ideal_i)`. Defaults to
            `1000`.
        **kwargs: As for `LossBalancer`.

    Example:

    >>> balancer = STCH(mu=0.1, preference=1.0)
    >>> float(balancer(np.array([1.0, 3.0])))
    3.0000000002...
    >>> balancer.last_task_weights
    array([1., 1.])

    For one task and `form="linear"` the total is the loss itself. The weights
    of the linear form sum to 1 for `preference=1.0` and to `1 / T` for the
    default, so that steps of SGD are shorter than those of the sum.

    Departures: the log form counts its warm-up in batches, LibMTL in epochs,
    with the mean losses of the last one as the nadir. It has no preference.

    References:
        - [Lin et al., 2024](https://arxiv.org/abs/2402.19078)
    """

    per_task_arguments = {
        "offset": 0.0,
        "preference": None,
        "ideal": 0.0,
        "nadir": None,
    }
    shift_example = "ideal=-1.0"

    def __init__(
        self,
        mu=1.0,
        preference=None,
        ideal=0.0,
        form="linear",
        nadir=None,
        warmup=1000,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 < mu < math.inf:
            raise ValueError(
                f"Argument `mu` must be a positive number. Received: mu={mu!r}"
            )
        if form not in ("linear", "log"):
            raise ValueError(
                "Argument `form` must be 'linear' or 'log'. Received: "
                f"form={form!r}"
            )
        for name, value, wanted in (
            ("preference", preference, "linear"),
            ("nadir", nadir, "log"),
        ):
            if value is not None and form != wanted:
                raise ValueError(
                    f"Argument `{name}` goes with form={wanted!r}. Received: "
                    f"{name}={value!r} with form={form!r}"
                )
        if not warmup >= 1:
            raise ValueError(
                "Argument `warmup` must be 1 or more batches. Received: "
                f"warmup={warmup!r}"
            )
        self.mu = float(mu)
        self.preference = check_positive("preference", preference)
        self.ideal = check_per_task("ideal", ideal)
        self.form = form
        self.nadir = check_positive("nadir", nadir)
        self.warmup = int(warmup)
        self.requires_positive_losses = form == "log"

    def shifted(self, task_losses):
        return task_losses - self.per_task("ideal")

    def build_state(self, num_tasks):
        if self.form == "log" and self.nadir is None:
            shape = (num_tasks,)
            self.counts = self.add_state("counts", shape, dtype="int64")
            self.means = self.add_state("means", shape)

    def update_state(self, task_losses, measured):
        if self.form != "log" or self.nadir is not None:
            return
        counts = ops.copy(self.counts)
        # The mean of what comes after the first half of the warm-up.
        number = ops.cast(counts - self.warmup // 2 + 1, "float64")
        warm = ops.logical_and(measured, ops.less(counts, self.warmup))
        noted = ops.logical_and(warm, ops.greater(number, 0))
        distances = self.shifted(task_losses) - self.means
        change = distances / ops.maximum(number, 1.0)
        self.means.assign(self.means + ops.where(noted, change, 0.0))
        self.counts.assign(counts + ops.cast(warm, "int64"))

    def call(self, task_losses):
        if self.form == "linear":
            preference = self.per_task("preference")
            if preference is None:
                preference = np.full(self.num_tasks, 1 / self.num_tasks)
            return self.smooth_maximum(preference * self.shifted(task_losses))
        logs = ops.log(self.shifted(task_losses))
        if self.nadir is not None:
            return self.log_form(logs, self.per_task("nadir"))
        warm = ops.all(self.counts >= self.warmup)
        nadir = ops.where(warm, self.means, 1.0)
        return ops.where(warm, self.log_form(logs, nadir), ops.sum(logs))

    def log_form(self, logs, nadir):
        relative = logs - ops.log(nadir)
        return self.num_tasks * self.smooth_maximum(relative)

    def smooth_maximum(self, values):
        return self.mu * ops.logsumexp(values / self.mu)

    def get_config(self):
        return {
            **super().get_config(),
            "mu": self.mu,
            "preference": self.preference,
            "ideal": self.ideal,
            "form": self.form,
            "nadir": self.nadir,
            "warmup": self.warmup,
        }
