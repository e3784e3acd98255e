import keras


class SlotLearningRate:
    """The scheduled learning rate of one clone in a `PerTaskOptimizer`.

    A clone counts its own updates, for bias correction, while a schedule has
    to see the batches. Keras accepts a callable as learning rate: this one
    gives the schedule the container's batch counter.

    Args:
        rate: `LearningRateSchedule` or callable, as given by the user.
        batches: Function that returns the container's batch counter.
    """

    def __init__(self, rate, batches):
        self.rate = rate
        self.batches = batches

    def __call__(self):
        schedule = keras.optimizers.schedules.LearningRateSchedule
        if isinstance(self.rate, schedule):
            return self.rate(self.batches())
        return self.rate()

    def assign(self, value):
        raise TypeError(
            "The learning rate of this optimizer is a schedule or a callable, "
            "hence it cannot be set. Create the optimizer with a float "
            "`learning_rate` to set it from a callback."
        )
