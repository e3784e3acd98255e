"""Two real processes under `MultiWorkerMirroredStrategy`, on loopback."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import workers

TESTS = pathlib.Path(__file__).parents[1]
TIMEOUT = 300


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def two_workers(what, directory):
    """Two processes that know of each other; killed at the end."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    try:
        for index in range(2):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            with open(directory / f"{what}_{index}.txt", "w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, TESTS / "workers.py", what, directory],
                        env={
                            **os.environ,
                            "PYTHONPATH": path,
                            "TF_CONFIG": json.dumps(config),
                            "TF_CPP_MIN_LOG_LEVEL": "2",
                        },
                        stdout=output,
                        stderr=output,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def results(path):
    with np.load(path) as arrays:
        found = {key: arrays[key] for key in arrays}
    runs = {}
    for key, value in found.items():
        run, name = key.split("/", 1)
        runs.setdefault(run, {})[name] = value
    return runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the workers ended with, trained at once and killed in between."""
    directory = tmp_path_factory.mktemp("workers")
    with two_workers("train", directory) as (_, second):
        code = second.wait(TIMEOUT)
        assert code == -signal.SIGKILL, output(directory, "train")
    # The first one was waiting for it, and is killed as well.
    written = sorted(path.name for path in (directory / "backup").iterdir())
    with two_workers("resume", directory) as processes:
        codes = [process.wait(TIMEOUT) for process in processes]
        assert codes == [0, 0], output(directory, "resume")
    return directory, written


def output(directory, what):
    texts = [(directory / f"{what}_{i}.txt").read_text() for i in range(2)]
    return "\n".join(text[-2000:] for text in texts)


def check(found, run):
    """Both workers, against one process without any."""
    first, second = found
    expected = workers.train(contextlib.nullcontext, workers.RUNS[run])
    assert set(first) == set(second) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(first[key], second[key], key)
        if key.startswith("log"):
            value = value[-len(first[key]) :]  # of the epochs that it ran
        tolerance = 1e-6 if key.startswith("variable") else 1e-5
        np.testing.assert_allclose(
            first[key], value, rtol=0, atol=tolerance, err_msg=key
        )


@pytest.mark.parametrize("run", ["joint", "aggregator", "balancer"])
def test_two_workers_equal_one_process(trained, run):
    directory, _ = trained
    found = [results(directory / f"train_{i}.npz")[run] for i in range(2)]
    check(found, run)
    # In `joint` they evaluate and predict, too.
    kinds = {key.partition("_")[0] for key in found[0]}
    assert kinds >= {"variable", "log"}
    assert (run == "joint") == ({"evaluated", "predicted"} <= kinds)


def test_a_killed_worker_and_its_chief_resume(trained):
    """One worker dies by SIGKILL in an epoch; both start again."""
    directory, written = trained
    # Written once, by the chief, and removed at the end.
    assert [name.split(".", 1)[1] for name in written] == [
        "npz",
        "weights.h5",
        "json",
    ]
    assert not (directory / "backup").exists()
    found = [
        results(directory / f"resume_{i}.npz")[workers.KILLED] for i in range(2)
    ]
    assert len(found[0]["log_loss"]) == workers.EPOCHS - workers.KILL_AT[0]
    check(found, workers.KILLED)
