import importlib.util

# Without the extra `tuner` there is nothing to test here.
if not importlib.util.find_spec("keras_tuner"):
    collect_ignore_glob = ["test_*.py"]
