import importlib.util

import tensorflow as tf


class ScalarWriter:
    """Writes numbers for TensorBoard.

    Args:
        log_dir: String, the folder of the event file.
    """

    def __init__(self, log_dir):
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "Events for TensorBoard are written with its own package, "
                "which is not installed. Received: log_dir="
                f"{log_dir!r}. Install it with: `pip install tensorboard`"
            )
        self._writer = tf.summary.create_file_writer(log_dir)

    def write(self, values, step):
        """Writes a dict of numbers, at one step."""
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)

    def close(self):
        self._writer.close()
