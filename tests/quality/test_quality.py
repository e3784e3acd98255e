"""benchmarks/quality: small runs of it, its protocol and its statistics."""

import copy
import json

import numpy as np
import pytest

import mtlkeras
from benchmarks.quality import (
    problems,
    protocols,
    runner,
    schema,
    search,
    store,
)
from benchmarks.quality.experiment import (
    CONFIGS,
    find_configs,
    read_experiment,
)
from benchmarks.quality.methods import METHODS

RAN = {
    "landscape": ["joint", "alternating", "alternating_shared_slots"],
    "quadratics_conflicting": ["joint", "mgda", "upgrad"],
    "multi_digits_2": ["single", "joint", "random_loss_weighting"],
}


def small(name):
    (path,) = find_configs([name])
    return {**read_experiment(path, smoke=True), "methods": RAN[name]}


def results_of(folder, config):
    return {m: store.read(folder, config, m) for m in config["methods"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small results of three experiments."""
    folder = tmp_path_factory.mktemp("results")
    assert runner.run([small(name) for name in RAN], folder, 1) == {}
    return folder


@pytest.mark.parametrize("name", RAN)
def test_results_are_as_the_schema_says(folder, name):
    config = small(name)
    for method, result in results_of(folder, config).items():
        schema.check_result(result)
        assert result["definition"] == METHODS[method]
        for cell in result["cells"]:
            assert cell["error"] is None
            assert cell["seconds"] > 0
            assert cell["peak_bytes"] > 1e8
            assert cell["steps"] > 0


def test_page_holds_the_tables_of_the_stored_results():
    """What `table --write` would write is there already."""
    pytest.importorskip("statsmodels", reason="pip install 'mtlkeras[test]'")
    from benchmarks.quality import page

    configs = [read_experiment(path) for path in find_configs(["cpu"])]
    tables = page.make_tables(configs, store.RESULTS)
    text = page.PAGE.read_text()
    assert page.put_tables(text, tables) == text


def test_landscape_tells_the_known_story(folder):
    """At Adam's 1e-3: slots per task solve what one shared Adam does not."""
    solved = {
        method: sum(cell["test"]["solved"] for cell in result["cells"])
        for method, result in results_of(folder, small("landscape")).items()
    }
    assert solved == {
        "joint": 4,
        "alternating": 5,
        "alternating_shared_slots": 4,
    }


@pytest.mark.parametrize(
    ("method", "end"),
    [
        ("joint", (-0.074933, 4.273768)),  # the minimum of the mean
        ("mgda", (0.3712, 2.7938)),
        ("upgrad", (-0.1804, 3.8935)),
    ],
)
def test_quadratics_end_where_float64_references_do(folder, method, end):
    (cell,) = results_of(folder, small("quadratics_conflicting"))[method][
        "cells"
    ]
    found = [cell["test"]["x1"], cell["test"]["x2"]]
    np.testing.assert_allclose(found, end, atol=2e-3)
    assert cell["test"]["distance"] < 1e-3


def test_a_second_run_gives_the_same_numbers(folder, tmp_path):
    config = small("multi_digits_2")
    runner.run([config], tmp_path, 1, methods=["joint"])
    first, second = (
        [
            schema.reproducible(c)
            for c in store.read(f, config, "joint")["cells"]
        ]
        for f in (folder, tmp_path)
    )
    assert first == second
    errors = [cell["test"]["left_error"] for cell in first if cell["test"]]
    assert len(set(errors)) > 1  # seeds do differ


@pytest.mark.parametrize(
    "method", ["random_loss_weighting", "uncertainty_weighting"]
)
def test_cells_do_not_depend_on_those_before(method):
    """The compiled model is used again, with all its state set back."""
    problem = problems.get("landscape", {})

    def ends(starts):
        cells = [
            {
                "tasks": list(problem.task_names),
                "setting": {"learning_rate": 0.01, "rounds": 100, "start": s},
                "seed": 0,
            }
            for s in starts
        ]
        return [problem.run(METHODS[method], cell)["test"] for cell in cells]

    assert ends([0, 1, 2]) == ends([2, 1, 0])[::-1]


@pytest.mark.parametrize("name", RAN)
def test_a_run_resumes_with_what_is_missing(folder, name):
    config = small(name)
    results = results_of(folder, config)
    tasks = results["joint"]["task_names"]
    assert protocols.missing_cells(config, results, tasks) == {}
    lost = results["joint"]["cells"].pop()
    (left,) = protocols.missing_cells(config, results, tasks)["joint"]
    assert left == {key: lost[key] for key in left}


def test_results_of_another_config_are_not_taken(folder):
    config = small("multi_digits_2")
    other = {**config, "arguments": {**config["arguments"], "rows": 301}}
    with pytest.raises(ValueError, match="another config"):
        store.read_matching(folder, other, "joint")


def test_schema_refuses_a_trial_that_saw_the_test_set(folder):
    config = small("multi_digits_2")
    result = copy.deepcopy(store.read(folder, config, "joint"))
    trial = result["cells"][0]
    trial["test"] = {"left_error": 0.1}
    with pytest.raises(ValueError, match="must not know the test set"):
        schema.check_result(result)
    trial["test"] = {}
    del trial["seed"]
    with pytest.raises(ValueError, match="must hold"):
        schema.check_result(result)


def test_tables_and_figures(folder, tmp_path, capsys):
    pytest.importorskip("statsmodels", reason="pip install 'mtlkeras[test]'")
    pytest.importorskip("matplotlib", reason="pip install 'mtlkeras[plot]'")
    from benchmarks.quality import figures, page

    configs = [small(name) for name in RAN]
    page.show(configs, folder, write=False)
    printed = capsys.readouterr().out
    assert "| joint | 4/5 |" in printed
    assert "| random_loss_weighting |" in printed
    # One network per task, beside itself: 0, with its own spread.
    assert "| single | 0.0 ± " in printed or "| single | -0.0 ± " in printed
    figures.draw(configs, folder, tmp_path)
    for name in RAN:
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


# -- problems ------------------------------------------------------------------


def losses_of_constants(problem):
    """Each task's metrics of its best constant, as `score` divides by them."""
    return {k: float(v) for k, v in problem.worst.items()}


def test_missing_data_is_a_skip_with_a_reason(tmp_path):
    config = small("landscape")
    config |= {"name": "absent", "problem": "mtan_scenes"}
    config["arguments"] = {"directory": str(tmp_path)}
    skipped = runner.run([config], tmp_path, 1)
    assert "No pictures in" in skipped["absent"]


def test_linear_groups_have_the_known_optimum():
    """With the true directions the error is that of the noise."""
    problem = problems.get("linear_groups", {"tasks_per_group": 2})
    (x, y), _, (x_test, y_test) = problem.data
    assert x.shape == (15, 6, 20)
    targets = {}
    for task, place in problem.places.items():
        # Many rows give the direction: the test rows, by least squares.
        found = np.linalg.lstsq(x_test[:, place], y_test[task][:, 0])
        targets[task] = found[0]
        np.testing.assert_allclose(found[1] / 480, 0.01, rtol=0.25)
    # Tasks of a group share a direction, of different groups they do not.
    names = list(targets)

    def cosine(a, b):
        a, b = targets[names[a]], targets[names[b]]
        return abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(0, 3) > 0.999
    assert cosine(0, 1) < 0.8


def test_attributes_are_as_frequent_as_said():
    problem = problems.get("attributes", {"rows": 2000})
    shares = [
        float(np.mean(np.concatenate([y[task] for _, y in problem.data])))
        for task in problem.task_names
    ]
    np.testing.assert_allclose(shares, np.geomspace(0.02, 0.5, 40), atol=1e-3)
    assert set(losses_of_constants(problem).values()) == {1.0}


def test_moons_turned_is_another_question():
    problem = problems.get("moons", {})
    labels = problem.data[2][1]
    for task in ("moon", "turned", "noise"):
        assert 0.4 < labels[task].mean() < 0.6
    agree = np.mean(labels["moon"] == labels["turned"])
    assert 0.1 < agree < 0.9
    assert 0.45 < np.mean(labels["moon"] == labels["noise"]) < 0.55


def test_scores_of_the_dense_metrics():
    """A perfect guess has no error; a known one has the known error."""
    problem = problems.get(
        "dense_scenes", {"size": 16, "rows": 4, "held_out": 4}
    )
    labels = problem.data[2][1]
    perfect = dict(labels)
    perfect["segmentation"] = np.eye(7)[labels["segmentation"]]
    for task in problem.task_names:
        found = problem.measure(task, labels[task], perfect[task])
        np.testing.assert_allclose(list(found.values()), 0, atol=0.1)
    found = problem.measure("depth", labels["depth"], labels["depth"] + 0.5)
    assert found["depth_error"] == pytest.approx(0.5, rel=1e-5)
    # Turned by a right angle about one axis that is at a right angle, too.
    across = np.stack(
        [labels["normals"][..., 1], -labels["normals"][..., 0]], -1
    )
    across = np.concatenate([across, np.zeros_like(across[..., :1])], -1)
    found = problem.measure("normals", labels["normals"], across)
    assert found["mean_angle"] == pytest.approx(90, abs=1e-3)
    assert found["beyond_30"] == 1


def test_arrays_of_mtan_are_read_and_unknown_pixels_left_out(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 2)):
        for k in range(count):
            label = generator.integers(-1, 3, (9, 12))
            normals = generator.normal(size=(9, 12, 3))
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            arrays = {
                "image": generator.uniform(size=(9, 12, 3)),
                "label": label,
                "depth": np.abs(label)[..., None] * 2.0,
                "normal": normals * (label >= 0)[..., None],
            }
            for name, array in arrays.items():
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                np.save(tmp_path / part / name / f"{k}.npy", array)
    arguments = {"directory": str(tmp_path), "classes": 3, "filters": [4, 4]}
    problem = problems.get("mtan_scenes", arguments)
    assert [len(x) for x, _ in problem.data] == [8, 2, 2]
    labels = problem.data[2][1]
    # Right where something is known, wrong where nothing is.
    found = problem.measure(
        "segmentation",
        labels["segmentation"],
        np.eye(3)[np.maximum(labels["segmentation"], 0)],
    )
    assert list(found.values()) == [0, 0]
    depth = np.where(labels["depth"] > 0, labels["depth"], 99.0)
    assert problem.measure("depth", labels["depth"], depth) == {
        "depth_error": 0,
        "relative_depth_error": 0,
    }
    loss = problem.losses["depth"](labels["depth"], labels["depth"] + 1.0)
    assert float(loss) == pytest.approx(1.0)
    inputs, outputs = problem.build({}, problem.task_names)
    shapes = {name: tuple(output.shape[1:]) for name, output in outputs.items()}
    assert shapes == {
        "segmentation": (9, 12, 3),
        "depth": (9, 12, 1),
        "normals": (9, 12, 3),
    }


# -- the protocol --------------------------------------------------------------


def test_methods_hold_every_rule():
    """The list is frozen by hand; nothing of the library may be missing."""
    text = json.dumps(METHODS)
    for folder in (mtlkeras.aggregators, mtlkeras.balancers):
        for id in folder.ids():
            assert f'"{id}"' in text, id


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("*/*.toml")), ids=lambda path: path.stem
)
def test_configs(path):
    """Each is read, full and small, and the reference is among its methods."""
    for smoke in (False, True):
        config = read_experiment(path, smoke)
        if config["protocol"] == "tuned":
            named = {config["reference"], *config["baselines"]}
            assert named <= set(config["methods"])
            if not smoke:
                # Fewer paired seeds cannot show anything.
                assert config["seeds"] >= 6 or path.parent.name == "gpu"


def test_all_methods_are_offered_the_same_settings():
    config = read_experiment(*find_configs(["multi_digits_2"]))
    plans = {
        method: protocols.trial_cells(config, method, ("left", "right"))
        for method in ("joint", "cagrad", "fixed_weights")
    }
    for shared in config["space"]:
        values = {
            tuple(cell["setting"][shared] for cell in plan)
            for plan in plans.values()
        }
        assert len(values) == 1
        assert len(*values) == config["trials"]
    weights = [c["setting"]["loss_weights"] for c in plans["fixed_weights"]]
    np.testing.assert_allclose(np.sum(weights, 1), 2)
    assert len({tuple(w) for w in weights}) == config["trials"]


def test_draws_stay_in_their_range():
    space = {"rate": {"log_uniform": [1e-4, 1e-2]}, "size": {"choice": [1, 2]}}
    drawn = [search.draw_setting(space, {}, t, 0, 2) for t in range(200)]
    rates = np.array([setting["rate"] for setting in drawn])
    assert rates.min() > 1e-4
    assert rates.max() < 1e-2
    np.testing.assert_allclose(np.log10(rates).mean(), -3, atol=0.15)
    assert {setting["size"] for setting in drawn} == {1, 2}


def test_the_best_trial_in_equal_seconds_can_be_another():
    trials = [
        {"score": 0.5, "training_seconds": 4.0, "setting": {"trial": 0}},
        {"score": None, "training_seconds": 1.0, "setting": {"trial": 1}},
        {"score": 0.4, "training_seconds": 4.0, "setting": {"trial": 2}},
        {"score": 0.3, "training_seconds": 4.0, "setting": {"trial": 3}},
    ]
    assert protocols.choose(trials) == {"trial": 3}
    assert protocols.choose(trials, 9.5) == {"trial": 2}
    assert protocols.choose(trials, 1.0) == {"trial": 0}
    assert protocols.choose(trials[1:2]) is None


# -- the statistics ------------------------------------------------------------


@pytest.fixture
def evidence():
    pytest.importorskip("statsmodels", reason="pip install 'mtlkeras[test]'")
    from benchmarks.quality import evidence

    return evidence


def test_interval_is_students(evidence):
    mean, half = evidence.interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert mean == 3.5
    # 2.5706 is the 97.5 % point of t with 5 degrees of freedom.
    np.testing.assert_allclose(half, 2.5706 * np.sqrt(3.5 / 6), rtol=1e-4)


def test_holm_is_the_step_down_rule(evidence):
    found = evidence.correct(
        {"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")}
    )
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_no_difference_is_no_evidence(evidence):
    same = evidence.compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same["difference"], same["p"]) == (0.0, 1.0)
    assert evidence.verdict(same, 1.0) == "no evidence"
    noisy = evidence.compare([1.0, 2.0, 3.0], [1.5, 1.0, 3.4])
    assert evidence.verdict(noisy, noisy["p"]) == "no evidence"


def test_a_clear_difference_is_told(evidence):
    worse = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    better = worse - 1 + 0.01 * np.sin(worse)
    found = evidence.compare(better, worse)
    assert evidence.verdict(found, found["p"]) == "better"
    found = evidence.compare(worse, better)
    assert evidence.verdict(found, found["p"]) == "worse"
    assert found["wilcoxon"] == pytest.approx(2 / 2**6)
