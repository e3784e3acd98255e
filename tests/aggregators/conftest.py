import gc

import compiled
import keras
import pytest


@pytest.fixture(autouse=True)
def _fixed_seeds():
    # As for all tests, without `clear_session`: that walks every function
    # that `compiled` keeps.
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _forget():
    yield
    compiled.forget()
    gc.collect()
