import dataclasses

import numpy as np

MAX_OBJECTS = 7
MIN_OBJECTS = 3
NUM_SHAPES = 5  # sphere, box, cylinder, cone, ellipsoid: see `scene_shapes`
NUM_PATTERNS = 4  # plain, checks, stripes, waves: see `scene_renderer`

# Factors of an object's size along its axes, from and to, for each shape. A
# sphere stays round; an ellipsoid must not be taken for a sphere.
PROPORTIONS = np.array(
    [
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        [[0.7, 0.7, 0.7], [1.3, 1.3, 1.3]],
        [[0.8, 0.8, 0.8], [0.8, 1.4, 0.8]],
        [[1.0, 1.0, 1.0], [1.0, 1.6, 1.0]],
        [[1.2, 0.5, 0.7], [1.5, 0.7, 1.0]],
    ]
)


@dataclasses.dataclass
class SceneParameters:
    """What `num_scenes` scenes (`n` below) are made of.

    Lengths are in metres. In the world, x points to the right, y up and z away
    from the camera, which is at `(0, height, 0)` and looks down by `pitch`.
    Surface 0 is the back wall, 1 the floor, 2 and on the objects.

    Attributes:
        height: `[n]`, of the camera above the floor.
        pitch: `[n]`, in radians.
        half_width: `[n]`, tangent of half the field of view.
        wall: `[n]`, distance of the back wall.
        light: `[n, 3]`, unit vector to the light.
        ambient: `[n]`, share of the light that comes from everywhere.
        cast: `[n, 3]`, colour of the light.
        present: `[n, 7]`, whether there is an object in this place.
        shape: `[n, 7]`, index of its shape.
        center: `[n, 7, 3]`, of objects that stand on the floor.
        yaw: `[n, 7]`, their turn about the vertical axis.
        scale: `[n, 7, 3]`, half their extents along their own axes.
        pattern: `[n, 9]`, index of the pattern of a surface.
        colors: `[n, 9, 2, 3]`, the two colours of the pattern.
        frequency: `[n, 9]`, of checks, per metre.
        direction: `[n, 9, 3]`, of stripes and waves, times their frequency.
        phase: `[n, 9, 3]`, of the pattern.
    """

    height: np.ndarray
    pitch: np.ndarray
    half_width: np.ndarray
    wall: np.ndarray
    light: np.ndarray
    ambient: np.ndarray
    cast: np.ndarray
    present: np.ndarray
    shape: np.ndarray
    center: np.ndarray
    yaw: np.ndarray
    scale: np.ndarray
    pattern: np.ndarray
    colors: np.ndarray
    frequency: np.ndarray
    direction: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(cls, rngs):
        """Draws a scene from each generator."""
        places, surfaces = MAX_OBJECTS, MAX_OBJECTS + 2
        draws = Draws(rngs, 200 + 11 * surfaces)

        half_width = np.tan(draws.uniform(0.9, 1.2) / 2)
        azimuth, elevation = draws.uniform(-1.2, 1.2), draws.uniform(0.6, 1.3)
        light = [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            -np.cos(azimuth) * np.cos(elevation),
        ]

        number = draws.integers(MAX_OBJECTS - MIN_OBJECTS + 1) + MIN_OBJECTS
        shape = draws.integers(NUM_SHAPES, places)
        low, high = np.moveaxis(PROPORTIONS[shape], 2, 0)
        scale = draws.uniform(0.35, 0.65, places)[..., None] * (
            low + (high - low) * draws.uniform(0, 1, places, 3)
        )
        # Each object has one of 3 x 3 fields of the floor for itself.
        field = np.argsort(draws.uniform(0, 1, 9), axis=1)[:, :places]
        z = 2.7 + field // 3 + draws.uniform(0, 1, places)
        x = 0.6 * (field % 3 - 1) + draws.uniform(-0.22, 0.22, places)
        center = np.stack([x * z * half_width[:, None], scale[..., 1], z], -1)

        # Drawn for all surfaces alike, so that colour tells no class.
        direction = draws.uniform(-1, 1, surfaces, 3)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        direction *= draws.uniform(1, 3, surfaces)[..., None]
        return cls(
            height=draws.uniform(1.2, 2.4),
            pitch=draws.uniform(0.15, 0.5),
            half_width=half_width,
            wall=draws.uniform(7, 10),
            light=np.stack(light, -1),
            ambient=draws.uniform(0.3, 0.5),
            cast=draws.uniform(0.85, 1.15, 3),
            present=np.arange(places) < number[:, None],
            shape=shape,
            center=center,
            yaw=draws.uniform(0, 2 * np.pi, places),
            scale=scale,
            pattern=draws.integers(NUM_PATTERNS, surfaces),
            colors=draws.uniform(0.1, 0.9, surfaces, 2, 3),
            frequency=draws.uniform(1, 3, surfaces),
            direction=direction,
            phase=draws.uniform(0.2, 0.8, surfaces, 3),
        )


class Draws:
    """Random numbers of many scenes at once, `count` from each generator."""

    def __init__(self, rngs, count):
        self.numbers = np.stack([rng.random(count) for rng in rngs])

    def uniform(self, low, high, *shape):
        size = int(np.prod(shape))
        if size > self.numbers.shape[1]:
            raise ValueError("Fewer numbers were drawn than are used.")
        taken, self.numbers = np.split(self.numbers, [size], axis=1)
        return low + (high - low) * taken.reshape(-1, *shape)

    def integers(self, high, *shape):
        return self.uniform(0, high, *shape).astype("int64")
