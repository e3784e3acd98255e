import keras


class BatchCounters:
    """How often each task had labels and was skipped since the last reset.

    Args:
        names: Tuple of task names.
    """

    def __init__(self, names):
        self.names = names
        # Only these can be without labels, so only these are counted.
        self.watched = []
        self.labelled = self._counter("labelled")
        self.skipped = self._counter("skipped")

    def _counter(self, name):
        return keras.Variable(
            [0] * len(self.names), dtype="int32", trainable=False, name=name
        )

    def reset(self):
        for counter in (self.labelled, self.skipped):
            counter.assign(keras.ops.zeros_like(counter))

    def unlabelled_tasks(self):
        """List of the tasks that never had a label."""
        counts = keras.ops.convert_to_numpy(self.labelled)
        return [
            n
            for n, c in zip(self.names, counts, strict=True)
            if c == 0 and n in self.watched
        ]

    def skipped_tasks(self):
        """Dict from task to how often its update was not finite."""
        counts = keras.ops.convert_to_numpy(self.skipped)
        return {
            n: int(c) for n, c in zip(self.names, counts, strict=True) if c > 0
        }
