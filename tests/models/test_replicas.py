"""Two virtual devices under `MirroredStrategy`: equal to one device."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import nets
import pytest
import tensorflow as tf
from cases import RULES, STRATEGIES

import mtlkeras

HERE = pathlib.Path(__file__).parent
AT_LEAST = {
    "strategies": len(STRATEGIES) + 2,
    "aggregators": len(RULES) + 2,
    "balancers": len(mtlkeras.balancers.ids()) + 3,
    "models": 8,
    "one replica": 2,
}


@pytest.mark.parametrize("runs", AT_LEAST)
def test_replicas_equal_one_device(runs):
    compared = run_mirrored(runs)
    assert len(compared) >= AT_LEAST[runs]
    failed = {key: found for key, found in compared.items() if "error" in found}
    assert not failed
    for key, found in compared.items():
        assert found["moved"] > 1e-3, key
        assert found["weights"] < 1e-6, key
        assert found["logs"] < 1e-5, key


def test_task_monitor_is_refused_on_two_replicas():
    found = run_mirrored("refused")
    assert "`TaskMonitor` measures on one device" in found["said"]
    assert "on 2 replicas. Leave it out" in found["said"]
    # The model is as before, and trains without.
    assert found["moved"] == 0
    assert found["trained"] > 1e-3


def run_mirrored(argument):
    """In a process of its own, which makes two devices of one processor."""
    root = HERE.parents[1]
    path = os.pathsep.join([str(root), str(root / "tests")])
    result = subprocess.run(
        [sys.executable, str(HERE / "mirrored.py"), argument],
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0"])


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
@pytest.mark.parametrize(
    ("optimizer", "arguments", "name"),
    [
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps"),
        (
            {"use_ema": True, "ema_overwrite_frequency": 3},
            {},
            "ema_overwrite_frequency",
        ),
        ({}, {"jit_compile": True}, "jit_compile"),
        ({}, {"steps_per_execution": 2}, "steps_per_execution"),
    ],
)
def test_what_replicas_cannot_do_is_refused(
    mirrored, strategy, optimizer, arguments, name
):
    with mirrored.scope():
        model = nets.mlp()
        with pytest.raises(ValueError, match=f"`{name}` must be left out in"):
            model.compile(
                keras.optimizers.SGD(0.1, **optimizer),
                loss=nets.losses(),
                strategy=strategy,
                **arguments,
            )
        assert not model.compiled
        model.compile("sgd", loss=nets.losses(), strategy=strategy)


def test_one_scope_for_model_optimizer_and_compile(mirrored):
    with mirrored.scope():
        inside = nets.mlp()
    with pytest.raises(
        ValueError,
        match="model built in the scope of a MirroredStrategy, and `compile` "
        "called in no scope",
    ):
        inside.compile("sgd", loss=nets.losses())

    outside, optimizer = nets.mlp(), keras.optimizers.SGD(0.1)
    with mirrored.scope():
        with pytest.raises(ValueError, match="built in no scope, and"):
            outside.compile("sgd", loss=nets.losses())
        with pytest.raises(ValueError, match="made in no scope, and a model"):
            inside.compile(optimizer, loss=nets.losses())


def test_one_device_with_a_scope_can_do_all():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = nets.mlp()
        model.compile(
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
            loss=nets.losses(),
            strategy="alternating",
        )
    x, y = nets.regression_data(rows=8)
    before = nets.values(model.trainable_variables)
    model.fit(x, y, batch_size=4, verbose=0)
    after = nets.values(model.trainable_variables)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
