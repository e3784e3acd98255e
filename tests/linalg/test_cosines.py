import numpy as np
import pytest
from jacobians import KINDS, draw

from mtlkeras.linalg.cosines import cosines_and_norms, resolution


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8, 40])
def test_equals_numpy(num_tasks):
    for kind in KINDS:
        jacobian = draw(kind, num_tasks, 50)
        wanted = np.linalg.norm(jacobian, axis=1)
        nonzero = wanted > 0
        unit = jacobian / np.where(nonzero, wanted, 1.0)[:, None]
        products = unit @ unit.T
        np.fill_diagonal(products, 1.0)
        cosines, norms, found = cosines_and_norms(jacobian @ jacobian.T)
        np.testing.assert_array_equal(found, nonzero)
        np.testing.assert_allclose(
            norms, np.where(nonzero, wanted, 1.0), rtol=1e-13
        )
        np.testing.assert_allclose(cosines, products, atol=1e-14)
        cosines = np.asarray(cosines)
        np.testing.assert_array_equal(cosines, cosines.T)
        np.testing.assert_array_equal(np.diagonal(cosines), 1.0)
        assert np.max(np.abs(cosines)) <= 1.0


@pytest.mark.parametrize("scale", [1e-100, 1e-15, 1e15, 1e100])
def test_does_not_feel_the_scale(scale):
    jacobian = draw("badscale", 5, 50)
    gramian = jacobian @ jacobian.T
    cosines, norms, _ = cosines_and_norms(gramian)
    others, longer, _ = cosines_and_norms(gramian * scale * scale)
    np.testing.assert_allclose(others, cosines, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(longer, np.asarray(norms) * scale, rtol=1e-13)


def test_leaves_out_tasks_that_are_not_live():
    gramian = draw("normal", 3, 5)
    gramian = gramian @ gramian.T
    live = np.array([True, False, True])
    gramian[1] = gramian[:, 1] = np.nan
    cosines, norms, nonzero = cosines_and_norms(gramian, live)
    np.testing.assert_array_equal(nonzero, live)
    np.testing.assert_array_equal(np.asarray(cosines)[1], [0, 1, 0])
    np.testing.assert_array_equal(np.asarray(cosines)[:, 1], [0, 1, 0])
    assert np.asarray(norms)[1] == 1
    assert np.all(np.isfinite(cosines))


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        ("float16", 2**-10),
        ("bfloat16", 2**-23),
        ("float32", 2**-23),
        ("float64", 2**-52),
        (np.dtype("float64"), 2**-52),
    ],
)
def test_resolution(dtype, eps):
    assert resolution(dtype, 3) == 3 * eps
