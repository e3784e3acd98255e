"""delta_m, mean_rank and hypervolume, against published and closed forms."""

import sys

import numpy as np
import pytest
import scipy.stats

from mtlkeras.metrics import delta_m, hypervolume, mean_rank

# NYUv2 as in Nash-MTL (2202.01017): two metrics of segmentation, two of depth,
# five of surface normals.
METRICS = ["miou", "accuracy", "absolute", "relative", "mean", "median"]
METRICS += ["11", "22", "30"]
HIGHER = [True, True, False, False, False, False, True, True, True]
SINGLE = [38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15]
NASH = [40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15]
# method -> its row, and the value reported for it
PUBLISHED = {
    "Nash-MTL": (NASH, -4.04),
    "CAGrad": (
        [39.79, 65.49, 0.5486, 0.2250, 26.31, 21.58, 25.61, 52.36, 65.58],
        0.20,
    ),
}
TASKS = {
    "segmentation": METRICS[:2],
    "depth": METRICS[2:4],
    "normals": METRICS[4:],
}


def named(values):
    return dict(zip(METRICS, values, strict=True))


class TestDeltaM:
    @pytest.mark.parametrize("method", PUBLISHED)
    def test_published_rows(self, method):
        """The paper gives every metric the same weight."""
        row, reported = PUBLISHED[method]
        found = delta_m(named(row), named(SINGLE), named(HIGHER))
        assert isinstance(found, float)
        # The rows are rounded, too.
        assert found == pytest.approx(reported, abs=0.03)
        assert delta_m(row, SINGLE, HIGHER) == found

    def test_golden_value(self):
        assert delta_m(NASH, SINGLE, HIGHER) == pytest.approx(-4.05, abs=0.01)

    def test_per_task_weighs_tasks(self):
        changes = (np.array(NASH) - SINGLE) / SINGLE * 100
        changes[np.array(HIGHER)] *= -1
        expected = np.mean(
            [changes[:2].mean(), changes[2:4].mean(), changes[4:].mean()]
        )
        by_name = delta_m(named(NASH), named(SINGLE), named(HIGHER), TASKS)
        assert by_name == pytest.approx(expected, rel=1e-12)
        assert by_name == pytest.approx(-7.65, abs=0.01)
        positions = [[0, 1], [3, 2], [8, 7, 6, 5, 4]]
        by_position = delta_m(NASH, SINGLE, HIGHER, positions)
        assert by_position == pytest.approx(expected, rel=1e-12)

    def test_sign(self):
        assert delta_m({"a": 1.1}, {"a": 1.0}, True) == pytest.approx(-10)
        assert delta_m({"a": 1.1}, {"a": 1.0}, False) == pytest.approx(10)
        # A negative score that rises is better, too.
        assert delta_m({"a": -1.0}, {"a": -2.0}, True) == pytest.approx(-50)

    def test_arrays_are_taken_entry_by_entry(self):
        values = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([3.0] * 3)}
        found = delta_m(values, {"a": 2.0, "b": 4.0}, False)
        np.testing.assert_allclose(found, [-37.5, -12.5, np.nan])

    def test_more_values_than_baselines(self):
        assert delta_m({"loss": 9, "a": 1}, {"a": 1}, True) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (({"b": 1.0}, {"a": 1.0}, True), r"without \['a'\]"),
            (({"a": 1.0}, {"a": 0.0}, True), "not 0.*0.0 for 'a'"),
            (({"a": 1.0}, {"a": np.nan}, True), "finite"),
            (({}, {}, True), "at least one metric"),
            (({"a": 1.0}, {"a": 1.0}, {"b": True}), "`higher_is_better`"),
            (({"a": 1.0}, {"a": 1.0}, {"a": "up"}), "`higher_is_better`"),
            (({"a": 1.0}, {"a": 1.0}, True, [["b"]]), "`groups`"),
            (({"a": 1.0}, {"a": 1.0}, True, [["a"], ["a"]]), "`groups`"),
            (({"a": 1.0}, {"a": 1.0}, True, [["a"], []]), "`groups`"),
            (({"a": 1.0}, {"a": 1.0}, True, ["a"]), "`groups`"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            delta_m(*arguments)


class TestMeanRank:
    def test_equals_scipy(self):
        rng = np.random.default_rng(0)
        table = rng.integers(0, 5, size=(7, 9)).astype("float64")  # with ties
        signs = np.where(HIGHER, -1, 1)
        expected = scipy.stats.rankdata(table * signs, axis=0).mean(1)
        found = mean_rank(
            {f"m{i}": named(row) for i, row in enumerate(table)}, named(HIGHER)
        )
        assert list(found) == [f"m{i}" for i in range(7)]
        np.testing.assert_allclose(list(found.values()), expected)

    def test_metrics_in_another_order(self):
        found = mean_rank({"x": {"a": 1, "b": 2}, "y": {"b": 3, "a": 1}}, False)
        assert found == {"x": 1.25, "y": 1.75}

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "must be a dict"),
            ([[1.0]], "must be a dict"),
            ({"x": {"a": 1.0}, "y": {"b": 1.0}}, r"others for \['y'\]"),
            ({"x": {}}, "at least one"),
            ({"x": {"a": 1.0}, "y": {"a": np.nan}}, r"NaN for \['y'\]"),
        ],
    )
    def test_bad_values(self, values, message):
        with pytest.raises(ValueError, match=message):
            mean_rank(values, True)


class TestHypervolume:
    def test_closed_forms(self):
        # DTLZ2: the unit quarter circle, with reference 1.1: 1.21 - pi / 4.
        angle = np.linspace(0, np.pi / 2, 20001)
        circle = np.stack([np.cos(angle), np.sin(angle)], 1)
        found = hypervolume(circle, [1.1, 1.1])
        assert found == pytest.approx(1.21 - np.pi / 4, abs=1e-4)
        # ZDT1: f2 = 1 - sqrt(f1); the area below is 1/3.
        f1 = np.linspace(0, 1, 20001)
        found = hypervolume(np.stack([f1, 1 - np.sqrt(f1)], 1), [1.1, 1.1])
        assert found == pytest.approx(1.21 - 1 / 3, abs=1e-4)

    def test_three_objectives_by_counting_cells(self):
        rng = np.random.default_rng(1)
        points = rng.integers(0, 6, size=(8, 3))
        corners = np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3)
        dominated = (points[None] <= corners[:, None]).all(-1).any(1).sum()
        assert hypervolume(points, [6, 6, 6]) == dominated

    def test_directions(self):
        points = np.array([[0.9, 2.0], [0.8, 1.0]])  # accuracy, error
        found = hypervolume(points, [0.5, 4.0], [True, False])
        assert found == pytest.approx(0.4 * 2 + 0.3 * 1)
        same = hypervolume(-points, [-0.5, -4.0], [False, True])
        assert same == pytest.approx(found)

    def test_points_beyond_the_reference_add_nothing(self):
        assert hypervolume([[1.0, 9.0]], [2.0, 2.0]) == 0
        assert hypervolume([[1.0, 1.0], [3.0, 0.0]], [2.0, 2.0]) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1.0, 2.0], [3.0, 3.0]), "shape"),
            (([[1.0, 2.0]], [3.0]), "shape"),
            ((np.zeros((0, 2)), [3.0, 3.0]), "shape"),
            (([[1.0, np.nan]], [3.0, 3.0]), "finite"),
            (([[1.0, 2.0]], [3.0, np.inf]), "finite"),
            (([[1.0, 2.0]], [3.0, 3.0], [True]), "higher_is_better"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            hypervolume(*arguments)

    def test_without_moocore(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "moocore", None)
        with pytest.raises(ImportError, match=r"mtlkeras\[metrics\]"):
            hypervolume([[1.0, 2.0]], [3.0, 3.0])
