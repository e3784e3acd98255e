"""A chief and two workers, as processes that talk over the loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TIMEOUT = 240  # seconds; a search takes 15 on an idle machine
NAMES = ["chief", "worker0", "worker1"]


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
                [sys.executable, HERE / "search_process.py", folder],
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


def test_two_workers_share_a_search(start, tmp_path):
    port = free_port()
    processes = {name: start(name, port, tmp_path) for name in NAMES}

    def said(name):
        return (tmp_path / f"{name}.txt").read_text()

    # The workers first: a chief waits for ever for one that has died.
    for name in reversed(NAMES):
        code = processes[name].wait(TIMEOUT)
        assert code == 0, f"{name}: {said(name)}"
    results = [
        json.loads(line.removeprefix("RESULT "))
        for name in NAMES[1:]
        for line in said(name).splitlines()
        if line.startswith("RESULT ")
    ]
    assert len(results) == 2
    folder = tmp_path / "search"
    trials = [
        json.loads(file.read_text())
        for file in folder.glob("trial_*/trial.json")
    ]
    assert len(trials) == 3
    assert {trial["status"] for trial in trials} == {"COMPLETED"}
    best = min(trials, key=lambda trial: trial["score"])
    stored = json.loads((folder / "single_task_baselines.json").read_text())
    for result in results:
        assert result["best"] == best["trial_id"]
        assert result["score"] == pytest.approx(best["score"])
        chosen = best["hyperparameters"]["values"]["strategy"]
        assert result["strategy"].lower() == chosen
        # All trials were measured against the same numbers.
        assert result["baselines"] in (stored, None)
    assert any(result["baselines"] for result in results)
    ran = [line for name in NAMES[1:] for line in said(name).splitlines()]
    assert not any("Traceback" in line for line in ran)
