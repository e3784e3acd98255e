import numpy as np

from mtlkeras.datasets.arguments import check_seed, check_sizes, check_tasks
from mtlkeras.datasets.array_cache import load_or_make
from mtlkeras.datasets.scene_parameters import SceneParameters
from mtlkeras.datasets.scene_renderer import render

# To be raised when a change of the drawing makes old caches wrong.
RECIPE = 1

# task -> dtype of its targets
TASKS = {
    "segmentation": "int32",
    "depth": "float32",
    "normals": "float32",
    "edges": "float32",
}

# Each split has its own numbers of scenes, so that none depends on the size
# of another one.
FIRST_SCENE = {"train": 0, "val": 10**9, "test": 2 * 10**9}

# Scenes that are drawn at once: few enough for the processor's cache.
CHUNK = 16


def scenes(
    num_train=600,
    num_val=150,
    num_test=150,
    tasks=("segmentation", "depth", "normals", "edges"),
    size=64,
    seed=0,
    cache=None,
):
    """Draws pictures of simple solids in a room, with four dense tasks.

    Choose it to try multi-task methods on dense prediction without a download:
    the tasks are those of NYUv2, their losses differ in kind and scale, and all
    labels are exact. It needs nothing but NumPy and draws several hundred
    pictures per second.

    Each scene is a room, of which floor and back wall are seen, with 3 to 7
    spheres, boxes, cylinders, cones and ellipsoids on the floor. Camera, light,
    sizes and patterns (plain, checks, stripes, waves) are random. The colours
    and patterns of a surface are drawn without regard to its class: what it is
    shows in its outline and its shading only.

    The tasks:

    | name | target | shape |
    |---|---|---|
    | `"segmentation"` | class, int32: 0 wall, 1 floor, 2 sphere, 3 box, 4 cylinder, 5 cone, 6 ellipsoid | `[n, size, size]` |
    | `"depth"` | distance along the axis of the camera, in metres, about 1 to 10 | `[n, size, size, 1]` |
    | `"normals"` | unit normal in the frame of the camera: x to the right, y up, z away from the camera | `[n, size, size, 3]` |
    | `"edges"` | 1 beside the border of two surfaces (objects, wall, floor), else 0 | `[n, size, size, 1]` |

    Scene number `i` of a split depends on `seed`, the split and `i` only: it
    stays the same when a size, `tasks` or the order in which scenes are drawn
    changes. Another `size` shows the same scene at another resolution, with
    other noise.

    Args:
        num_train: Integer. Number of training scenes. Defaults to `600`.
        num_val: Integer. Number of validation scenes. Defaults to `150`.
        num_test: Integer. Number of test scenes. Defaults to `150`.
        tasks: List or tuple of task names; the targets come in this order.
            Defaults to all four.
        size: Integer. Height and width of the pictures. Defaults to `64`.
        seed: Non-negative integer. Defaults to `0`.
        cache: Path of a file, or `None`. Where the file is missing, or was
            written for other numbers, `size` or `seed`, the scenes are drawn
            and the file is written; else they are loaded from it. All tasks
            are stored: 21 bytes per pixel. Defaults to `None`, no file.

    Returns:
        Three tuples `(x_train, y_train), (x_val, y_val), (x_test, y_test)`.
        `x` is a float32 array of shape `[num_scenes, size, size, 3]` with
        values from 0 to 1 in steps of 1/255, `y` a dict of one array per task;
        all but the segmentation are float32.

    Raises:
        ValueError: If a number of scenes or `size` is not a positive integer,
            if a task is unknown, named twice or none is named, if the seed is
            negative, or if there is a file at `cache` that is not a cache.

    Example:

    >>> (x_train, y_train), (x_val, y_val), (x_test, y_test) = scenes(
    ...     num_train=10, num_val=2, num_test=2, size=32
    ... )
    >>> x_train.shape
    (10, 32, 32, 3)
    >>> {task: targets.shape for task, targets in y_test.items()}
    {'segmentation': (2, 32, 32), 'depth': (2, 32, 32, 1), \
'normals': (2, 32, 32, 3), 'edges': (2, 32, 32, 1)}

    References:
        - The tasks, on photographs:
          [Silberman et al., 2012](https://doi.org/10.1007/978-3-642-33715-4_54)
          (NYUv2), as multi-task problem
          [Liu et al., 2019](https://arxiv.org/abs/1803.10704). The scenes are
          our own; numbers on them say nothing about results on photographs.
    """  # noqa: E501
    numbers = {"train": num_train, "val": num_val, "test": num_test}
    check_sizes(
        num_train=num_train, num_val=num_val, num_test=num_test, size=size
    )
    check_tasks(tasks, TASKS)
    check_seed(seed)
    numbers = {split: int(number) for split, number in numbers.items()}
    arrays = load_or_make(
        cache,
        {
            "dataset": "scenes",
            "recipe": RECIPE,
            "numbers": numbers,
            "size": int(size),
            "seed": int(seed),
        },
        lambda: draw_splits(numbers, int(size), int(seed)),
    )
    return tuple(as_task_data(arrays, split, tasks) for split in numbers)


def draw_splits(numbers, size, seed):
    """A dict of arrays, named by split and what they show."""
    return {
        f"{split}_{name}": values
        for split, number in numbers.items()
        for name, values in draw_scenes(
            range(FIRST_SCENE[split], FIRST_SCENE[split] + number), size, seed
        ).items()
    }


def draw_scenes(indices, size, seed):
    """The scenes of the given numbers: a dict of arrays, as `render` gives."""
    chunks = []
    for start in range(0, len(indices), CHUNK):
        rngs = [
            np.random.default_rng([seed, index])
            for index in indices[start : start + CHUNK]
        ]
        parameters = SceneParameters.draw(rngs)
        noise = [
            rng.standard_normal((size, size, 3), "float32") for rng in rngs
        ]
        chunks.append(render(parameters, np.stack(noise)))
    return {
        name: np.concatenate([chunk[name] for chunk in chunks])
        for name in chunks[0]
    }


def as_task_data(arrays, split, tasks):
    x = arrays[f"{split}_image"].astype("float32") / 255
    y = {task: arrays[f"{split}_{task}"].astype(TASKS[task]) for task in tasks}
    return x, y
