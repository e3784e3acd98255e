"""The seam to the framework: the only folder that imports TensorFlow.

`mtlkeras.models` takes `MultiTaskTrainer` from here, as `keras.Model` takes its
trainer from `keras.backend`, and nothing else knows which framework runs.
"""

import os

SUPPORTED_BACKENDS = ("tensorflow",)


def check_backend():
    """Raises an `ImportError` that says what to install or to set."""
    try:
        import keras
    except ModuleNotFoundError as error:
        # Keras imports its backend; only a missing backend is ours to explain.
        wanted = os.environ.get("KERAS_BACKEND", "tensorflow")
        if wanted not in SUPPORTED_BACKENDS:
            raise ImportError(unsupported(wanted)) from error
        if error.name not in ("tensorflow", "keras"):
            raise
        raise ImportError(
            "mtlkeras needs Keras 3 with the TensorFlow backend, but the "
            f"package `{error.name}` is not installed. Install one of: "
            '`pip install "mtlkeras[tensorflow]"`, '
            '`pip install "mtlkeras[tensorflow-cpu]"` (smaller, without GPU '
            'support) or `pip install "mtlkeras[gpu]"` (with the CUDA '
            "libraries)."
        ) from error
    backend = keras.backend.backend()
    if backend not in SUPPORTED_BACKENDS:
        raise ImportError(unsupported(backend))


def unsupported(backend):
    return (
        "mtlkeras supports the Keras backends "
        f"{', '.join(SUPPORTED_BACKENDS)}. Received: the backend {backend!r}. "
        "Set the environment variable KERAS_BACKEND=tensorflow before Keras "
        "is imported."
    )


check_backend()
