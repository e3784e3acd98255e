"""Against exact solutions and, where these can be trusted, other libraries.

`data/README.md` says what the vectors are. Errors are relative to the size of
the matrix of gradients.
"""

import numpy as np
import pytest
from cases import AGGREGATOR, AggregatorCase
from compiled import compiled
from jacobians import golden, golden_kinds, relative_error

from mtlkeras import aggregators
from mtlkeras.aggregators.graddrop import drop_signs

EXACT = 1e-11  # measured: 1e-13
FLOAT32 = 1e-4  # measured: 8e-5 (FairGrad on conflict), most 1e-7


class Golden:
    """A rule, the key of its vectors and where these are less than exact.

    Args:
        rule: Id of a case, object, or a function of a preference.
        key: String.
        kinds: Dict from kind to tolerance; `None` leaves the kind out.
        single: Kinds to leave out in float32.
    """

    def __init__(self, rule, key, kinds=None, single=()):
        if isinstance(rule, str):
            rule = AGGREGATOR[rule]
        elif isinstance(rule, aggregators.Aggregator):
            rule = AggregatorCase(rule, key)
        self.rule = rule
        self.key = key
        self.kinds = kinds or {}
        self.single = single
        self.cases = {}  # number of tasks -> `AggregatorCase`

    def vectors(self, num_tasks):
        for num_params in (4, 50):
            name = f"T{num_tasks}_P{num_params}"
            jacobians = golden()[f"J/{name}"]
            directions = golden().get(f"{self.key}/{name}")
            if directions is None:
                continue
            if self.key == "jd.IMTLG" and num_tasks > num_params:
                continue
            for kind, jacobian, direction in zip(
                golden_kinds(), jacobians, directions, strict=True
            ):
                known = not np.isnan(direction).any()
                tolerance = self.kinds.get(kind, EXACT)
                if known and tolerance is not None:
                    yield kind, jacobian, direction, tolerance

    def compiled(self, num_tasks, dtype="float64"):
        if num_tasks not in self.cases:
            case = self.rule
            if not isinstance(case, AggregatorCase):
                case = case(np.arange(1.0, num_tasks + 1))
                case = AggregatorCase(case, self.key)
            self.cases[num_tasks] = case
        return compiled(self.cases[num_tasks], num_tasks, 4, dtype)

    def __repr__(self):
        return self.key


def aligned(preference):
    return aggregators.AlignedMTL(preference=preference / sum(preference))


# Nothing is left of rows this short in a float32 Gramian.
SHORT = ["badscale", "midscale"]
CAGRAD = {"badscale": None, "midscale": None, "zerorow": None}

GOLDEN = [
    Golden("mgda", "ref.MGDA_exact"),
    Golden("upgrad", "ref.UPGrad_exact"),
    Golden("dual_proj", "ref.DualProj_exact"),
    Golden("fairgrad", "ref.Nash_exact"),
    Golden(aggregators.NashMTL(max_norm=None), "ref.Nash_exact"),
    Golden(aggregators.FairGrad(2.0), "ref.FairGrad_a2_exact"),
    Golden(
        "cagrad",
        "jd.CAGrad_c0.5_eps1e-12",
        dict.fromkeys(golden_kinds(), 1e-4) | CAGRAD,
    ),
    Golden(
        aggregators.CAGrad(rescale=1),
        "lib.CAGrad",
        dict.fromkeys(golden_kinds(), 5e-4) | CAGRAD,
    ),
    Golden(
        aggregators.CAGrad(rescale=2),
        "lib.CAGrad_rescale2",
        dict.fromkeys(golden_kinds(), 5e-4) | CAGRAD,
    ),
    Golden(
        "imtl_g",
        "jd.IMTLG",
        {"badscale": None, "lowrank": None, "stationary": None},
    ),
    Golden("aligned_mtl", "jd.AlignedMTL", {"badscale": 1e-9}, SHORT),
    Golden(
        aggregators.AlignedMTL("median"),
        "jd.AlignedMTL_median",
        {"badscale": 1e-6},
        SHORT,
    ),
    Golden(
        aggregators.AlignedMTL("rmse"),
        "jd.AlignedMTL_rmse",
        {"badscale": 1e-3},
        SHORT,
    ),
    Golden(aligned, "jd.AlignedMTL_pref", {"badscale": 1e-9}, SHORT),
    Golden("con_fig", "jd.ConFIG", {"lowrank": 1e-7, "stationary": 1e-6}),
    # Only the ratios of its preference count.
    Golden(
        lambda preference: aggregators.ConFIG(preference),
        "jd.ConFIG_pref",
        {"lowrank": 1e-7, "stationary": 1e-6},
    ),
    Golden("pcgrad_ascending", "jd.PCGrad_asc"),
    # With targets of 0 it is the same.
    Golden("gradvac_ascending", "jd.PCGrad_asc"),
]

every_golden = pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c}_{GOLDEN.index(c)}"
)


@every_golden
def test_equals_golden_vectors(case):
    count = 0
    for num_tasks in [2, 3, 5, 8]:
        # Two and five tasks are eight of which some are not live.
        rule = case.compiled(3 if num_tasks == 3 else 8)
        for kind, jacobian, wanted, tolerance in case.vectors(num_tasks):
            error = relative_error(rule.padded(jacobian), wanted, jacobian)
            assert error <= tolerance, (num_tasks, kind)
            count += 1
    assert count > 30


@every_golden
def test_float32_equals_golden_vectors(case):
    rule = case.compiled(3, "float32")
    for kind, jacobian, wanted, tolerance in case.vectors(3):
        if kind not in case.single:
            error = relative_error(rule(jacobian), wanted, jacobian)
            assert error <= max(tolerance, FLOAT32), kind


def test_imtl_g_is_zero_where_equal_projections_do_not_exist():
    rule = compiled(AGGREGATOR["imtl_g"], 8, 4)
    for jacobian in golden()["J/T8_P4"]:
        if np.linalg.matrix_rank(jacobian) < 4:
            continue
        units = jacobian / np.maximum(
            np.linalg.norm(jacobian, axis=1, keepdims=True), 1e-300
        )
        lost = np.linalg.lstsq(units, np.ones(8), rcond=None)[1]
        if lost.size and lost > 1e-2:
            assert not rule(jacobian).any()


@pytest.mark.parametrize("num_tasks", [2, 3, 5, 8])
@pytest.mark.parametrize("num_params", [4, 50])
def test_graddrop_for_given_uniform_numbers(num_tasks, num_params):
    name = f"T{num_tasks}_P{num_params}"
    for row, jacobian in enumerate(golden()[f"J/{name}"]):
        uniforms = golden()[f"U/{name}"][row]
        if np.isnan(uniforms).any():
            continue
        leaks = golden()[f"leak/{name}"][row]
        for key, leak in (("jd.GradDrop", 0.0), ("jd.GradDrop_leak", leaks)):
            found = drop_signs(jacobian, uniforms, leak)
            np.testing.assert_allclose(
                found, golden()[f"{key}/{name}"][row], rtol=1e-13, atol=1e-13
            )


J = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])

# Direction, weights (`None`: not told).
CLOSED_FORM = [
    ("mean", [1, 1, 1], [0.5, 0.5]),
    ("sum", [2, 2, 2], [1, 1]),
    ("mgda", [0, 1, 1], [0.6, 0.4]),
    ("pcgrad", [0.5848, 3.8012, 3.8012], [2.2222, 1.5789]),
    ("upgrad", [0.2924, 1.9006, 1.9006], None),
    ("dual_proj", [0.5556, 1.1111, 1.1111], None),
    ("cagrad", [0.1835, 1.2041, 1.2041], [0.7041, 0.5]),
    ("imtl_g", [0.0767, 1, 1], [0.5923, 0.4077]),
    ("nash_mtl", [0.0542, 0.7061, 0.7061], None),
    ("aligned_mtl", [0.2133, 0.9673, 0.9673], [0.5591, 0.4083]),
    ("con_fig", [0.1588, 2.0706, 2.0706], None),
]


@pytest.mark.parametrize(("name", "direction", "weights"), CLOSED_FORM)
def test_published_values_of_a_small_matrix(name, direction, weights):
    rule = compiled(AGGREGATOR[name], 3, 7)
    np.testing.assert_allclose(rule.padded(J), direction, atol=6e-5)
    if weights is not None:
        np.testing.assert_allclose(rule.weights[:2], weights, atol=6e-5)
