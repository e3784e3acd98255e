import keras
import pytest


@pytest.fixture(autouse=True)
def _fixed_seeds():
    # As for all tests, without `clear_session`: nothing here is of a session.
    keras.utils.set_random_seed(0)
