"""A chief and two workers, as processes that talk over the loopback."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "search_process.py"
TIMEOUT = 240  # seconds; a search takes 15 on an idle machine
NAMES = ["chief", "worker0", "worker1"]

spec = importlib.util.spec_from_file_location("search_process", SCRIPT)
search_process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(search_process)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start():
    """Starts a process; none outlives the test, whatever happens."""
    processes = []

    def start(name, port, folder):
        environment = {
            **os.environ,
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parents[1]), str(HERE.parent)]
            ),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "no_proxy": "127.0.0.1",
        }
        output = (folder / f"{name}.txt").open("w")
        processes.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, folder, str(len(NAMES))],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        )
        output.close()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_two_workers_share_a_search(start, tmp_path, monkeypatch):
    port = free_port()
    processes = {name: start(name, port, tmp_path) for name in NAMES}
    said = {}
    # The workers first: a chief waits for ever for one that has died.
    for name in reversed(NAMES):
        code = processes[name].wait(TIMEOUT)
        said[name] = (tmp_path / f"{name}.txt").read_text()
        assert code == 0, f"{name}: {said[name]}"
        assert "Traceback" not in said[name]
    # What one who comes later finds in the folder, under the chief's name.
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    tuner = search_process.make_tuner(tmp_path)
    trials = list(tuner.oracle.trials.values())
    assert [trial.status for trial in trials] == ["COMPLETED"] * 3
    (best,) = tuner.oracle.get_best_trials()
    assert best.score == min(trial.score for trial in trials)
    (model,) = tuner.get_best_models()
    chosen = best.hyperparameters.values["strategy"]
    assert type(model.update_strategy).__name__.lower() == chosen
    # Every trial was measured against the same numbers.
    file = tmp_path / "search" / "single_task_baselines.json"
    stored = json.loads(file.read_text())
    found = [
        values
        for name in NAMES
        for values in json.loads(said[name].rpartition("BASELINES ")[2])
    ]
    assert found
    assert all(values == stored for values in found)
    for trial in trials:
        gains = [
            trial.metrics.get_last_value(f"val_{key}") / value - 1
            for key, value in stored.items()
        ]
        expected = 100 * sum(gains) / len(gains)
        assert trial.score == pytest.approx(expected, rel=1e-4)
