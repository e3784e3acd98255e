import balancing
import keras
import pytest


@pytest.fixture(autouse=True)
def _fixed_seeds():
    # As for all tests, without `clear_session`: that walks every function
    # that `balancing` keeps.
    keras.utils.set_random_seed(0)


def pytest_runtest_teardown(item, nextitem):
    if nextitem is None or nextitem.path.parent != item.path.parent:
        balancing.compiled.cache_clear()
