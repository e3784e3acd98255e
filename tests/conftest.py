import gc
import os

# Nothing here is large: more threads would only get into each other's way.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import pytest


def pytest_collection_finish(session):
    # Else every `clear_session` walks all of TensorFlow's objects.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()
