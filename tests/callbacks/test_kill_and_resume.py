"""Killed by SIGKILL and resumed: the same bits, for strategies, balancers
and rules.

In the middle of an epoch with `BackupAndResume`, at epoch ends with the
callback of Keras.
"""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

SCRIPT = pathlib.Path(__file__).parent / "train_and_be_killed.py"


def run(*arguments):
    path = os.pathsep.join(
        [str(SCRIPT.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_same_bits_as_an_uninterrupted_run(tmp_path):
    """One test for all, since its two processes take most of its time."""
    killed = run("kill", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    # All of them were killed with a backup to resume from.
    cases = sorted(folder.name for folder in tmp_path.iterdir())
    assert len(cases) == 10
    resumed = run("resume", tmp_path, tmp_path / "states.npz")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    states = dict(np.load(tmp_path / "states.npz"))
    for case in cases:
        check(states, case)


def check(states, case):
    def of(name):
        prefix = f"{case}/{name}/"
        return {
            key.removeprefix(prefix): value
            for key, value in states.items()
            if key.startswith(prefix)
        }

    whole, resumed = of("whole"), of("resumed")
    assert whole.pop("epochs") == 3
    assert resumed.pop("epochs") == 2
    assert sorted(whole) == sorted(resumed)
    assert len(whole) > 20
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, f"{case}: {name}")
