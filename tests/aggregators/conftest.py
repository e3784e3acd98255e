import compiled
import keras
import pytest


@pytest.fixture(autouse=True)
def _fixed_seeds():
    # As for all tests, without `clear_session`: that walks every function
    # that `compiled` keeps.
    keras.utils.set_random_seed(0)


def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path.parent != item.path.parent:
        compiled.forget()
