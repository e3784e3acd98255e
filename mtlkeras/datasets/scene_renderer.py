"""Draws scenes: a picture of each, and what is to be told from it.

Many scenes are drawn at once. A ray goes through the middle of each pixel; its
direction has z = 1 in the frame of the camera, so that its parameter at a
surface is the depth there. `n` is the number of scenes, `p = n * size * size`
the number of pixels. All operations on pixels are elementwise, hence a scene
does not depend on those that are drawn with it.
"""

import numpy as np

from mtlkeras.datasets.scene_shapes import SHAPES, dot

WALL, FLOOR = 0, 1
NOISE = 0.02  # standard deviation, of colours from 0 to 1


def render(scenes, noise):
    """Draws scenes.

    Args:
        scenes: `SceneParameters` of `n` scenes.
        noise: Float32 array of shape `[n, size, size, 3]`: standard normal
            numbers.

    Returns:
        A dict of arrays `[n, size, size, ...]`: `"image"` in uint8,
        `"segmentation"` in uint8, `"depth"` and `"normals"` in float32,
        `"edges"` in uint8.
    """
    num_scenes, size = noise.shape[:2]
    rays = camera_rays(scenes, size)
    surface, depth, normal, point = draw_room(scenes, rays)
    draw_objects(scenes, rays, surface, depth, normal, point)

    scene = np.repeat(np.arange(num_scenes), size * size)
    albedo = paint(scenes, scene, surface, point)
    light = scenes.light.T.astype("float32")[:, scene]
    lit = np.maximum(dot(light, normal), 0)
    ambient = scenes.ambient.astype("float32")[scene]
    image = albedo * (ambient + (1 - ambient) * lit)
    image *= scenes.cast.T.astype("float32")[:, scene]

    shape = (num_scenes, size, size)
    image = image.T.reshape(*shape, 3) + np.float32(NOISE) * noise
    classes = np.full((num_scenes, 2 + scenes.shape.shape[1]), [WALL])
    classes[:, FLOOR] = FLOOR
    classes[:, 2:] = 2 + scenes.shape
    return {
        "image": np.rint(np.clip(image, 0, 1) * 255).astype("uint8"),
        "segmentation": classes[scene, surface].astype("uint8").reshape(shape),
        "depth": depth.reshape(*shape, 1),
        "normals": to_camera(scenes, scene, normal).T.reshape(*shape, 3),
        "edges": find_edges(surface.reshape(shape))[..., None],
    }


def camera_rays(scenes, size):
    """Directions in the world: x `[n, size]` of columns, y and z of rows."""
    steps = (2 * np.arange(size) + 1) / size - 1
    x = scenes.half_width[:, None] * steps
    up = -x
    cos, sin = np.cos(scenes.pitch)[:, None], np.sin(scenes.pitch)[:, None]
    return x, up * cos - sin, up * sin + cos


def draw_room(scenes, rays):
    """The wall and the floor: surface, depth, normal and point, `[..., p]`."""
    x, y, z = rays
    num_scenes, size = x.shape
    wall = scenes.wall[:, None] / z
    down = np.where(y < 0, -y, 1.0)
    floor = np.where(y < 0, scenes.height[:, None] / down, np.inf)
    depth = np.minimum(wall, floor)
    is_floor = floor < wall  # [n, size]: the same along a row

    def spread(rows):
        pixels = np.broadcast_to(
            rows[..., None], (num_scenes, size, size)
        ).reshape(-1)
        return np.array(pixels, "float32")

    point = np.stack(
        [
            (x[:, None, :] * depth[:, :, None]).reshape(-1).astype("float32"),
            spread(np.where(is_floor, 0, scenes.height[:, None] + y * depth)),
            spread(np.where(is_floor, z * depth, 0)),
        ]
    )
    up = spread(is_floor)
    normal = np.stack([np.zeros_like(up), up, up - 1])
    surface = np.where(up > 0, FLOOR, WALL)
    return surface, spread(depth), normal, point


def draw_objects(scenes, rays, surface, depth, normal, point):
    """Draws the objects over the room, in place."""
    size = rays[0].shape[1]
    scene, place = np.nonzero(scenes.present)
    order = np.argsort(scenes.shape[scene, place], kind="stable")
    scene, place = scene[order], place[order]
    shape = scenes.shape[scene, place]
    center, scale = scenes.center[scene, place], scenes.scale[scene, place].T
    yaw = scenes.yaw[scene, place]
    cos, sin = np.cos(yaw), np.sin(yaw)

    # One candidate for each object and pixel of the box around it.
    owner, row, column = pixels_in(object_boxes(scenes, scene, place, size))
    of_scene = scene[owner]
    pixel = (of_scene * size + row) * size + column
    origin = -center.T
    origin[1] += scenes.height[scene]
    origin = turn(origin, cos, -sin) / scale
    origin = origin[:, owner]
    x, y, z = rays
    direction = np.stack(
        [x[of_scene, column], y[of_scene, row], z[of_scene, row]]
    )
    direction = turn(direction, cos[owner], -sin[owner]) / scale[:, owner]

    t = np.empty(len(owner))
    for (meet, _), part in by_shape(shape[owner]):
        t[part] = meet(origin[:, part], direction[:, part])

    hit = np.flatnonzero(t < depth[pixel])
    # NumPy keeps the last of values for one index: the nearest one.
    hit = hit[np.argsort(-t[hit], kind="stable")]
    nearest = np.full(len(depth), -1)
    nearest[pixel[hit]] = hit
    shown = np.flatnonzero(nearest >= 0)
    chosen = np.sort(nearest[shown])
    shown, owner = pixel[chosen], owner[chosen]

    local = origin[:, chosen] + t[chosen] * direction[:, chosen]
    outward = np.empty_like(local)
    for (_, find_normal), part in by_shape(shape[owner]):
        outward[:, part] = find_normal(local[:, part])
    outward = turn(outward / scale[:, owner], cos[owner], sin[owner])
    outward /= np.sqrt(dot(outward, outward))

    surface[shown] = 2 + place[owner]
    depth[shown] = t[chosen]
    normal[:, shown] = outward
    point[:, shown] = local * scale[:, owner]


def by_shape(shape):
    """The functions of each shape and its slice of a sorted array."""
    bounds = np.searchsorted(shape, np.arange(len(SHAPES) + 1))
    return zip(SHAPES, map(slice, bounds[:-1], bounds[1:]), strict=True)


def object_boxes(scenes, scene, place, size):
    """First and last row and column of objects, `[4, num_objects]`."""
    corners = np.stack(np.meshgrid(*3 * [[-1.0, 1.0]]), -1).reshape(8, 3)
    corners = corners * scenes.scale[scene, place][:, None]
    yaw = scenes.yaw[scene, place][:, None]
    corners = np.moveaxis(corners, -1, 0)  # [3, num_objects, 8]
    x, y, z = turn(corners, np.cos(yaw), np.sin(yaw))
    x = x + scenes.center[scene, place, 0][:, None]
    y = y + scenes.center[scene, place, 1][:, None]
    y = y - scenes.height[scene][:, None]
    z = z + scenes.center[scene, place, 2][:, None]
    cos = np.cos(scenes.pitch[scene])[:, None]
    sin = np.sin(scenes.pitch[scene])[:, None]
    y, z = y * cos + z * sin, z * cos - y * sin
    half_width = scenes.half_width[scene][:, None]
    column = (1 + x / z / half_width) * size / 2
    row = (1 - y / z / half_width) * size / 2
    first = np.floor([row.min(1), column.min(1)])
    last = np.ceil([row.max(1), column.max(1)])
    return np.clip([*first, *last], 0, size).astype("int64")


def pixels_in(boxes):
    """Every pixel of every box: index of the box, row and column."""
    top, left, bottom, right = boxes
    width = right - left
    count = (bottom - top) * width
    owner = np.repeat(np.arange(len(count)), count)
    position = np.arange(len(owner)) - (np.cumsum(count) - count)[owner]
    row, column = np.divmod(position, width[owner])
    return owner, top[owner] + row, left[owner] + column


def turn(vectors, cos, sin):
    """Turns vectors `[3, ...]` about the vertical axis."""
    x, y, z = vectors
    return np.stack([cos * x + sin * z, y, cos * z - sin * x])


def to_camera(scenes, scene, vectors):
    x, y, z = vectors
    cos = np.cos(scenes.pitch).astype("float32")[scene]
    sin = np.sin(scenes.pitch).astype("float32")[scene]
    return np.stack([x, y * cos + z * sin, z * cos - y * sin])


def paint(scenes, scene, surface, point):
    """The albedo of each pixel, `[3, p]`, from its surface's pattern."""
    material = scene * scenes.pattern.shape[1] + surface

    def of_pixels(values, *axes):
        flat = values.reshape(-1, *axes).astype("float32")
        return np.moveaxis(flat, 0, -1)[..., material]

    phase = of_pixels(scenes.phase, 3)
    cells = np.floor(point * of_pixels(scenes.frequency) + phase)
    along = dot(point, of_pixels(scenes.direction, 3)) + phase[0]
    part = along - np.floor(along)
    part *= 1 - part
    patterns = [
        np.zeros_like(along),
        (cells[0] + cells[1] + cells[2]) % 2,
        np.floor(along) % 2,
        # A wave without `sin`, whose last bit may depend on the machine.
        16 * part * part,
    ]
    share = np.choose(of_pixels(scenes.pattern).astype("int64"), patterns)
    first, second = of_pixels(scenes.colors, 2, 3)
    return first + (second - first) * share


def find_edges(surface):
    """1 where a pixel above, below, left or right is of another surface."""
    edges = np.zeros(surface.shape, "uint8")
    across = surface[:, :, 1:] != surface[:, :, :-1]
    along = surface[:, 1:] != surface[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= along
    edges[:, :-1] |= along
    return edges
