import keras
import numpy as np
import pytest
from nets import TASKS, losses, mlp, regression_data

from mtlkeras.callbacks import DeltaM
from mtlkeras.metrics import delta_m

KEYS = [f"{task}_mae" for task in TASKS]
BASELINES = dict(zip(KEYS, [0.5, 0.2, 0.9], strict=True))


def fit(callbacks, epochs=3, **arguments):
    model = mlp()
    model.compile("adam", losses(), metrics=dict.fromkeys(TASKS, "mae"))
    x, y = regression_data()
    return model.fit(
        x, y, epochs=epochs, callbacks=callbacks, verbose=0, **arguments
    ).history


def test_history_holds_what_the_function_gives():
    groups = {"first": KEYS[:1], "others": KEYS[1:]}
    callbacks = [
        DeltaM(BASELINES, False),
        DeltaM(BASELINES, dict.fromkeys(KEYS, False), groups, name="by_task"),
    ]
    history = fit(callbacks, validation_data=regression_data(seed=1))
    for prefix in ("", "val_"):
        values = {key: np.array(history[prefix + key]) for key in KEYS}
        np.testing.assert_allclose(
            history[f"{prefix}delta_m"], delta_m(values, BASELINES, False)
        )
        np.testing.assert_allclose(
            history[f"{prefix}by_task"],
            delta_m(values, BASELINES, False, groups),
        )
    assert history["delta_m"] != history["by_task"]


def test_callbacks_after_it_read_it(tmp_path):
    file = tmp_path / "best.keras"
    callbacks = [
        DeltaM(BASELINES, True),  # the wrong way round: training makes it worse
        keras.callbacks.EarlyStopping("val_delta_m", mode="min", patience=1),
        keras.callbacks.ModelCheckpoint(
            file, monitor="val_delta_m", mode="min", save_best_only=True
        ),
    ]
    data = regression_data()
    history = fit(callbacks, epochs=9, validation_data=data)
    # Falling errors raise it from the first epoch on.
    assert len(history["val_delta_m"]) == 2
    assert history["val_delta_m"][0] < history["val_delta_m"][1]
    scores = keras.saving.load_model(file).evaluate(
        *data, verbose=0, return_dict=True
    )
    best = delta_m(scores, BASELINES, True)
    assert best == pytest.approx(history["val_delta_m"][0], rel=1e-5)


def test_without_validation_in_every_epoch():
    history = fit(
        [DeltaM(BASELINES, False)],
        validation_data=regression_data(seed=1),
        validation_freq=2,
    )
    assert len(history["delta_m"]) == 3
    assert len(history["val_delta_m"]) == 1


def test_a_key_that_is_not_logged():
    with pytest.raises(ValueError, match=r"\['val_left_mae'\], while the logs"):
        fit([DeltaM({"val_left_mae": 1.0}, False)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], True), "`baselines` must be a dict"),
        (({}, True), "at least one"),
        (({"a": 0.0}, True), "not 0"),
        (({"a": 1.0}, {"b": True}), "`higher_is_better`"),
        (({"a": 1.0}, True, {"task": ["b"]}), "`groups`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeltaM(*arguments)
