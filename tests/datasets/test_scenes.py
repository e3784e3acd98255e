import dataclasses
import doctest
import importlib

import numpy as np
import pytest
from scipy import stats

from mtlkeras.datasets import scenes
from mtlkeras.datasets.scene_parameters import SceneParameters
from mtlkeras.datasets.scene_renderer import render

TASKS = ("segmentation", "depth", "normals", "edges")
SHAPES = ["sphere", "box", "cylinder", "cone", "ellipsoid"]
SMALL = {"num_train": 5, "num_val": 2, "num_test": 3, "size": 16}

# The package exports the function under the name of its module.
module = importlib.import_module("mtlkeras.datasets.scenes")


def draw(num_scenes):
    rngs = [np.random.default_rng([7, i]) for i in range(num_scenes)]
    return SceneParameters.draw(rngs)


def draw_one_object(shape, num_scenes):
    """Scenes with one large object of a shape, in the middle."""
    parameters = draw(num_scenes)
    scale = np.random.default_rng(0).uniform(0.4, 0.9, (num_scenes, 3))
    if shape == "sphere":
        scale[:] = scale[:, :1]
    parameters.present[:] = np.arange(7) == 0
    parameters.shape[:, 0] = SHAPES.index(shape)
    parameters.scale[:, 0] = scale
    parameters.center[:, 0] = [0.2, 0.0, 3.5]
    parameters.center[:, 0, 1] = scale[:, 1]
    return parameters


def render_still(parameters, size):
    """Pictures without noise."""
    shape = (len(parameters.height), size, size, 3)
    return render(parameters, np.zeros(shape, "float32"))


class Camera:
    """Rays of a scene, in NumPy's matrix algebra and float64."""

    def __init__(self, parameters, index, size):
        pitch = parameters.pitch[index]
        cos, sin = np.cos(pitch), np.sin(pitch)
        self.from_world = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
        self.position = np.array([0, parameters.height[index], 0])
        middle = (2 * np.arange(size) + 1) / size - 1
        x, y = np.meshgrid(middle, -middle)
        half_width = parameters.half_width[index]
        rays = [half_width * x, half_width * y, np.ones_like(x)]
        self.rays = np.stack(rays, -1)  # [size, size, 3]
        self.rays_in_world = self.rays @ self.from_world

    def points(self, depth):
        """Points of the world at depths `[size, size, 1]`."""
        return self.position + depth * self.rays_in_world


def object_frame(parameters, index, points):
    """Points of the world in the frame of the first object."""
    yaw = parameters.yaw[index, 0]
    cos, sin = np.cos(yaw), np.sin(yaw)
    to_world = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    local = (points - parameters.center[index, 0]) @ to_world
    return local / parameters.scale[index, 0]


def inside(shape, points):
    """Whether points of an object's frame are inside of it."""
    x, y, z = np.moveaxis(points, -1, 0)
    if shape == "box":
        return np.abs(points).max(-1) <= 1
    if shape == "cylinder":
        return (x**2 + z**2 <= 1) & (np.abs(y) <= 1)
    if shape == "cone":
        return (np.hypot(x, z) <= (1 - y) / 2) & (np.abs(y) <= 1)
    return x**2 + y**2 + z**2 <= 1


# -- geometry -----------------------------------------------------------------


def test_an_empty_room_in_closed_form():
    parameters = draw(20)
    parameters.present[:] = False
    shown = render_still(parameters, 32)
    for i in range(20):
        camera = Camera(parameters, i, 32)
        fall, ahead = (
            -camera.rays_in_world[..., 1],
            camera.rays_in_world[..., 2],
        )
        floor = np.full(fall.shape, np.inf)
        floor[fall > 0] = parameters.height[i] / fall[fall > 0]
        wall = parameters.wall[i] / ahead
        depth = np.minimum(floor, wall)
        np.testing.assert_allclose(shown["depth"][i, ..., 0], depth, rtol=1e-6)
        is_floor = floor < wall
        np.testing.assert_array_equal(shown["segmentation"][i], is_floor)
        up = camera.from_world @ [0, 1, 0]
        back = camera.from_world @ [0, 0, -1]
        expected = np.where(is_floor[..., None], up, back)
        np.testing.assert_allclose(shown["normals"][i], expected, atol=1e-6)


def test_spheres_in_closed_form():
    parameters = draw_one_object("sphere", 20)
    shown = render_still(parameters, 48)
    for i in range(20):
        camera = Camera(parameters, i, 48)
        center = parameters.center[i, 0] - camera.position
        center = camera.from_world @ center
        radius = parameters.scale[i, 0, 0]
        # The root of |t ray - center|^2 = radius^2.
        a = (camera.rays**2).sum(-1)
        b = camera.rays @ center
        rest = b**2 - a * (center @ center - radius**2)
        seen = rest > 0
        np.testing.assert_array_equal(shown["segmentation"][i] == 2, seen)
        depth = (b[seen] - np.sqrt(rest[seen])) / a[seen]
        found = shown["depth"][i, ..., 0][seen]
        np.testing.assert_allclose(found, depth, rtol=1e-6)
        normal = (depth[:, None] * camera.rays[seen] - center) / radius
        found = shown["normals"][i][seen]
        np.testing.assert_allclose(found, normal, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_where_a_march_along_the_ray_finds_them(shape):
    parameters = draw_one_object(shape, 3)
    shown = render_still(parameters, 32)
    steps = np.linspace(2.0, 5.5, 1500)
    for i in range(3):
        camera = Camera(parameters, i, 32)
        points = camera.points(steps[:, None, None, None])
        hit = inside(shape, object_frame(parameters, i, points))
        marched = hit.any(0)
        seen = shown["segmentation"][i] == 2 + SHAPES.index(shape)
        assert marched.sum() > 20
        # Steps miss what is thinner than one of them, and never the rest.
        assert not (marched & ~seen).any()
        assert (seen & ~marched).sum() <= 3
        both = seen & marched
        first = steps[hit.argmax(0)][both]
        found = shown["depth"][i, ..., 0][both]
        assert (found <= first + 1e-6).all()
        assert (found >= first - (steps[1] - steps[0]) - 1e-6).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_are_those_of_the_depth(shape):
    """Cross products of neighbouring points, at a high resolution."""
    parameters = draw_one_object(shape, 2)
    shown = render_still(parameters, 300)
    for i in range(2):
        points = Camera(parameters, i, 300).points(shown["depth"][i])
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        right = points[1:-1, 2:] - points[1:-1, :-2]
        normal = np.cross(right, down)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        from_world = Camera(parameters, i, 300).from_world
        cosine = (normal @ from_world.T * shown["normals"][i, 1:-1, 1:-1]).sum(
            -1
        )
        for surface in (0, 1, 2 + SHAPES.index(shape)):
            of_surface = shown["segmentation"][i, 1:-1, 1:-1] == surface
            # Differences across an outline or a ridge say nothing.
            assert np.quantile(cosine[of_surface], 0.15) > 0.999


def test_normals_have_unit_length_and_face_the_camera():
    parameters = draw(50)
    shown = render_still(parameters, 32)
    length = np.linalg.norm(shown["normals"], axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-6)
    for i in range(50):
        rays = Camera(parameters, i, 32).rays
        assert ((shown["normals"][i] * rays).sum(-1) < 1e-6).all()


def test_depth_is_that_of_the_nearest_object():
    parameters = draw(12)
    together = render_still(parameters, 32)
    depths, classes = [], []
    for place in range(7):
        present = parameters.present & (np.arange(7) == place)
        alone = dataclasses.replace(parameters, present=present)
        alone = render_still(alone, 32)
        depths.append(alone["depth"][..., 0])
        classes.append(alone["segmentation"])
    nearest = np.argmin(depths, axis=0)[None]
    # Fields of objects overlap a little: also seen through each other.
    np.testing.assert_array_equal(
        together["depth"][..., 0], np.min(depths, axis=0)
    )
    np.testing.assert_array_equal(
        together["segmentation"],
        np.take_along_axis(np.array(classes), nearest, 0)[0],
    )


def test_objects_stand_on_the_floor_inside_the_room():
    parameters = draw(300)
    bottom = parameters.center[..., 1] - parameters.scale[..., 1]
    np.testing.assert_allclose(bottom, 0, atol=1e-12)
    reach = np.hypot(parameters.scale[..., 0], parameters.scale[..., 2])
    back = parameters.center[..., 2] + reach
    assert (back < parameters.wall[:, None]).all()
    assert (parameters.center[..., 2] - reach > 1).all()
    number = parameters.present.sum(1)
    assert set(number) == {3, 4, 5, 6, 7}


def test_no_ellipsoid_is_a_sphere():
    parameters = draw(300)
    ratio = parameters.scale.max(-1) / parameters.scale.min(-1)
    np.testing.assert_allclose(ratio[parameters.shape == 0], 1)
    assert (ratio[parameters.shape == 4] > 1.5).all()


def test_edges_are_where_neighbours_differ():
    parameters = draw(6)
    shown = render_still(parameters, 24)
    # Every object a class of its own, by drawing each alone.
    for i in range(6):
        depth = shown["depth"][i, ..., 0]
        owner = np.where(shown["segmentation"][i] == 1, 1, 0)
        for place in range(7):
            present = parameters.present & (np.arange(7) == place)
            alone = dataclasses.replace(parameters, present=present)
            alone = render_still(alone, 24)
            is_object = alone["segmentation"][i] >= 2
            owner[is_object & (alone["depth"][i, ..., 0] == depth)] = 2 + place
        for row in range(24):
            for column in range(24):
                differs = any(
                    owner[row, column] != owner[r, c]
                    for r, c in [
                        (row - 1, column),
                        (row + 1, column),
                        (row, column - 1),
                        (row, column + 1),
                    ]
                    if 0 <= r < 24 and 0 <= c < 24
                )
                assert shown["edges"][i, row, column, 0] == differs


# -- colour -------------------------------------------------------------------


def test_a_plain_surface_is_lit_as_lambert_says():
    parameters = draw(10)
    parameters.pattern[:] = 0
    parameters.colors[:, :, 0] = [0.2, 0.5, 0.7]
    shown = render_still(parameters, 24)
    for i in range(10):
        to_camera = Camera(parameters, i, 24).from_world
        light = to_camera @ parameters.light[i]
        direct = np.maximum(shown["normals"][i] @ light, 0)[..., None]
        ambient = parameters.ambient[i]
        expected = (ambient + (1 - ambient) * direct) * [0.2, 0.5, 0.7]
        expected = np.minimum(expected * parameters.cast[i], 1)
        found = shown["image"][i] / 255
        np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-5)


def test_noise_is_added():
    parameters = draw(4)
    still = render_still(parameters, 32)["image"].astype("float64") / 255
    noise = np.random.default_rng(0).standard_normal((4, 32, 32, 3), "float32")
    noisy = render(parameters, noise)["image"] / 255
    inner = (still > 0.1) & (still < 0.9)
    added = (noisy - still)[inner]
    np.testing.assert_allclose(added.std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(added, 0.02 * noise[inner], atol=1.1 / 255)


def test_patterns_do_not_tell_the_class():
    parameters = draw(1500)
    shape = parameters.shape
    # Wall and floor, then the five shapes.
    classes = [(slice(None), 0), (slice(None), 1)]
    classes += [np.nonzero(shape == kind) for kind in range(5)]
    classes[2:] = [(scene, 2 + place) for scene, place in classes[2:]]
    numbers = {
        "red": parameters.colors[..., 0, 0],
        "blue": parameters.colors[..., 1, 2],
        "frequency": parameters.frequency,
        "direction": parameters.direction[..., 1],
        "phase": parameters.phase[..., 0],
    }
    for values in numbers.values():
        for chosen in classes:
            assert stats.ks_2samp(values[chosen], values.ravel()).pvalue > 1e-3
    counts = [np.bincount(parameters.pattern[chosen]) for chosen in classes]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_patterns_differ():
    """Each pattern shows on the floor what its name says."""
    parameters = draw(1)
    parameters.present[:] = False
    parameters.colors[0, 1] = [[0.2] * 3, [0.8] * 3]
    parameters.cast[:] = 1
    levels = []
    for pattern in range(4):
        parameters.pattern[:] = pattern
        shown = render_still(parameters, 64)
        on_floor = shown["segmentation"][0] == 1
        levels.append(len(np.unique(shown["image"][0][on_floor][:, 0])))
    assert levels[:3] == [1, 2, 2]
    assert levels[3] > 50


# -- the data set -------------------------------------------------------------


def test_shapes_types_and_range():
    splits = scenes(**SMALL)
    for (x, y), number in zip(splits, (5, 2, 3), strict=True):
        assert x.shape == (number, 16, 16, 3)
        assert x.dtype == np.float32
        assert x.min() >= 0
        assert x.max() <= 1
        np.testing.assert_allclose(x * 255, np.rint(x * 255), atol=1e-4)
        assert tuple(y) == TASKS
        assert y["segmentation"].shape == (number, 16, 16)
        assert y["segmentation"].dtype == np.int32
        for task, channels in [("depth", 1), ("normals", 3), ("edges", 1)]:
            assert y[task].shape == (number, 16, 16, channels)
            assert y[task].dtype == np.float32
        assert set(np.unique(y["edges"])) == {0, 1}


def test_defaults():
    (x_train, y_train), (x_val, _), (x_test, y_test) = scenes(size=16)
    assert (len(x_train), len(x_val), len(x_test)) == (600, 150, 150)
    assert tuple(y_train) == TASKS
    for y in (y_train, y_test):
        assert set(np.unique(y["segmentation"])) == set(range(7))
    assert 1 < y_train["depth"].min() < 2
    assert 9 < y_train["depth"].max() < 12


def test_tasks_come_in_the_order_named():
    (_, y), _, _ = scenes(**SMALL, tasks=["edges", "depth"])
    (_, full), _, _ = scenes(**SMALL)
    assert tuple(y) == ("edges", "depth")
    for task, targets in y.items():
        np.testing.assert_array_equal(targets, full[task])


def test_a_scene_depends_on_its_number_and_the_seed_only():
    whole = module.draw_scenes(range(40), 24, seed=3)
    for indices in ([0], [17], range(5, 29), [38, 2, 20]):
        some = module.draw_scenes(list(indices), 24, seed=3)
        for name, values in some.items():
            np.testing.assert_array_equal(values, whole[name][list(indices)])
    other = module.draw_scenes(range(40), 24, seed=4)
    same = (other["image"] == whole["image"]).reshape(40, -1).mean(1)
    assert (same < 0.5).all()


def test_splits_do_not_depend_on_each_other():
    train, val, test = scenes(**SMALL)
    more = scenes(num_train=9, num_val=4, num_test=3, size=16)
    for (x, y), (x_more, y_more) in zip((train, val, test), more, strict=True):
        np.testing.assert_array_equal(x, x_more[: len(x)])
        for task in TASKS:
            np.testing.assert_array_equal(y[task], y_more[task][: len(x)])
    pictures = np.concatenate([x for x, _ in more])
    assert len({picture.tobytes() for picture in pictures}) == 16


def test_size_is_a_resolution():
    # The middle of each of 3 x 3 pixels is the middle of a larger one.
    coarse = module.draw_scenes(range(5), 15, seed=0)
    fine = module.draw_scenes(range(5), 45, seed=0)
    same = fine["segmentation"][:, 1::3, 1::3] == coarse["segmentation"]
    assert same.mean() > 0.999
    depth = fine["depth"][:, 1::3, 1::3][same]
    np.testing.assert_allclose(depth, coarse["depth"][same], rtol=1e-5)


def test_numpy_state_is_left_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    scenes(**SMALL)
    assert np.random.random() == expected


@pytest.mark.parametrize("name", ["num_train", "num_val", "num_test", "size"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True, None, "10"])
def test_bad_size(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive") as e:
        scenes(**{**SMALL, name: value})
    assert f"Received: {name}={value!r}" in str(e.value)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("depth", "colour"), r"unknown \['colour'\]"),
        (("depth", "depth"), "name each task once"),
        ((), "at least one name"),
        ("depth", "list or tuple"),
        (None, "list or tuple"),
    ],
)
def test_bad_tasks(tasks, message):
    with pytest.raises(ValueError, match=message):
        scenes(**SMALL, tasks=tasks)


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="`seed` must be a non-negative"):
        scenes(**SMALL, seed=seed)


# -- the cache ----------------------------------------------------------------


@pytest.fixture
def draws(monkeypatch):
    """The arguments of the calls that draw."""
    calls = []
    real = module.draw_splits

    def draw_splits(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(module, "draw_splits", draw_splits)
    return calls


def check_equal(first, second):
    for (x, y), (x_other, y_other) in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, x_other)
        assert x.dtype == x_other.dtype
        assert tuple(y) == tuple(y_other)
        for task in y:
            np.testing.assert_array_equal(y[task], y_other[task])
            assert y[task].dtype == y_other[task].dtype


def test_cache_gives_what_was_drawn(tmp_path, draws):
    path = tmp_path / "new" / "scenes.npz"
    expected = scenes(**SMALL)
    check_equal(scenes(**SMALL, cache=path), expected)
    assert [file.name for file in path.parent.iterdir()] == ["scenes.npz"]
    assert len(draws) == 2
    check_equal(scenes(**SMALL, cache=str(path)), expected)
    assert len(draws) == 2
    (_, y), _, _ = scenes(**SMALL, cache=path, tasks=["edges"])
    assert len(draws) == 2
    assert tuple(y) == ("edges",)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"size": 12}, {"num_test": 4}, {"num_train": 4}]
)
def test_cache_of_other_arguments_is_written_anew(tmp_path, draws, change):
    path = tmp_path / "scenes.npz"
    scenes(**SMALL, cache=path)
    changed = {**SMALL, **change}
    found = scenes(**changed, cache=path)
    assert len(draws) == 2
    check_equal(found, scenes(**changed))
    check_equal(found, scenes(**changed, cache=path))
    assert len(draws) == 3


def test_cache_of_an_older_recipe_is_written_anew(tmp_path, draws, monkeypatch):
    path = tmp_path / "scenes.npz"
    scenes(**SMALL, cache=path)
    monkeypatch.setattr(module, "RECIPE", module.RECIPE + 1)
    scenes(**SMALL, cache=path)
    assert len(draws) == 2


def write_text(path):
    path.write_text("no arrays")


def write_nothing(path):
    path.touch()


def write_other_arrays(path):
    with path.open("wb") as file:
        np.savez(file, weights=np.ones(3))


def write_one_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def write_half(path):
    scenes(**SMALL, cache=path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "write",
    [
        write_text,
        write_nothing,
        write_other_arrays,
        write_one_array,
        write_half,
    ],
)
def test_a_file_that_is_no_cache_is_left_alone(tmp_path, write):
    path = tmp_path / "mine.npz"
    write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="`cache` must name a file") as e:
        scenes(**SMALL, cache=path)
    assert f"Received: cache='{path}'" in str(e.value)
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_cache(tmp_path, monkeypatch):
    path = tmp_path / "scenes.npz"
    scenes(**SMALL, cache=path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        scenes(**SMALL, seed=1, cache=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cache", [True, 3, {}])
def test_bad_cache(cache):
    with pytest.raises(ValueError, match="`cache` must be the path") as e:
        scenes(**SMALL, cache=cache)
    assert f"Received: cache={cache!r}" in str(e.value)


def test_docstring_example():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
