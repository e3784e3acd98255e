"""Faces drawn from formulas, in place of CelebA's photographs.

DRAWN, for `celeba.py --drawn`, so that everyone can run it. Nothing that is
measured on them says anything about faces or about CelebA.

A face is made of ellipses, in random places and of random sizes, with noise.
Ten attributes bear names of CelebA; they are more frequent than there, so that
few pictures teach them, and some go together or exclude one another: who is
bald has neither fringe nor blond hair, and a mustache seldom meets lipstick.
"""

import numpy as np
from fundus import blend, radius

ATTRIBUTES = (
    "Bald",
    "Bangs",
    "Blond_Hair",
    "Eyeglasses",
    "Mustache",
    "Pale_Skin",
    "Rosy_Cheeks",
    "Smiling",
    "Wearing_Hat",
    "Wearing_Lipstick",
)
# Number of the first picture: no picture is in two splits.
FIRST = {"train": 0, "validation": 1_000_000, "test": 2_000_000}


def load(split, options, shuffle_buffer=0):
    """`(x, y)` of the form that `mtlkeras.datasets.from_tfds` gives.

    A quarter as many pictures for validation as for training, half as many for
    test.
    """
    import tensorflow as tf

    share = {"train": 1, "validation": 0.25, "test": 0.5}[split]
    x, y = drawn_faces(
        round(share * options.rows),
        options.image_size,
        options.seed,
        FIRST[split],
    )
    y = {name: y[name] for name in options.attributes or ATTRIBUTES}
    data = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y))
    if shuffle_buffer:
        data = data.shuffle(shuffle_buffer, seed=options.seed)
    return data.batch(options.batch_size).prefetch(tf.data.AUTOTUNE)


def drawn_faces(number, size, seed, first=0):
    """Draws faces number `first`, `first + 1`, ...

    Args:
        number: Integer, how many.
        size: Integer, height and width in pixels.
        seed: Integer. A face depends on it and on its own number only.
        first: Integer, number of the first face. Defaults to `0`.

    Returns:
        `x, y`: pictures `[number, size, size, 3]`, uint8, and a dict from
        attribute to labels `[number, 1]`, float32, 1 where it is present.
    """
    x = np.empty((number, size, size, 3), "uint8")
    y = {name: np.empty((number, 1), "float32") for name in ATTRIBUTES}
    for row in range(number):
        rng = np.random.default_rng([seed, first + row])
        present = draw_attributes(rng)
        x[row] = draw_face(rng, present, size)
        for name in ATTRIBUTES:
            y[name][row] = present[name]
    return x, y


def draw_attributes(rng):
    """Dict from attribute to whether a face has it."""
    chance = dict(zip(ATTRIBUTES, rng.random(len(ATTRIBUTES)), strict=True))
    bald = chance["Bald"] < 0.2
    often_lipstick = 0.1 if bald else 0.45
    lipstick = chance["Wearing_Lipstick"] < often_lipstick
    frequencies = {
        "Bald": 0.2,
        "Bangs": 0 if bald else 0.45,
        "Blond_Hair": 0 if bald else 0.4,
        "Eyeglasses": 0.35,
        "Mustache": 0.05 if lipstick else 0.45,
        "Pale_Skin": 0.35,
        "Rosy_Cheeks": 0.6 if lipstick else 0.2,
        "Smiling": 0.5,
        "Wearing_Hat": 0.25,
        "Wearing_Lipstick": often_lipstick,
    }
    return {name: bool(chance[name] < frequencies[name]) for name in ATTRIBUTES}


def draw_face(rng, present, size):
    """A picture `[size, size, 3]`, uint8.

    What is drawn from `rng` does not depend on the attributes: two faces from
    the same numbers differ by their attributes alone.
    """
    skin = rng.uniform(0.42, 0.8) * np.array([1, rng.uniform(0.7, 0.8), 0.6])
    pale = rng.uniform(0.88, 0.98) * np.array([1, 0.9, rng.uniform(0.8, 0.88)])
    hair = rng.uniform(0.08, 0.32) * np.array([1, *rng.uniform(0.55, 0.85, 2)])
    blond = rng.uniform(0.75, 0.95) * np.array([1, 0.84, rng.uniform(0.4, 0.6)])
    shirt, hat = rng.uniform(0.1, 0.9, (2, 3))
    long_hair, frame = rng.random(), rng.uniform(0, 0.3, 3)
    bend = {True: rng.uniform(0.12, 0.17), False: rng.uniform(-0.1, -0.02)}
    skin = pale if present["Pale_Skin"] else skin
    hair = blond if present["Blond_Hair"] else hair

    x, y, picture = place(rng, size)

    # From the back to the front.
    def lay(share, color):
        blend(picture, share, np.asarray(color))

    def pair(across, down, width, height):
        """Two ellipses, left and right."""
        return ellipse(np.abs(x), y, (across, down), width, height)

    lay(ellipse(x, y, (0, 1.2), 0.75, 0.55), shirt)
    if not present["Bald"]:
        lay(ellipse(x, y, (0, -0.12), 0.54, 0.58), hair)
        bottom = 0.3 + 0.6 * long_hair
        lay(ellipse(x, y, (0, bottom - 0.5), 0.55, 0.5), hair)
    lay(ellipse(x, y, (0, 0.62), 0.19, 0.35), 0.85 * skin)
    lay(pair(0.43, 0.05, 0.08, 0.13), 0.9 * skin)
    head = ellipse(x, y, (0, 0), 0.43, 0.58)
    lay(head, skin)
    # Wider than the head, lest its edge shows through.
    top = ellipse(x, y, (0, 0), 0.46, 0.61)
    if not present["Bald"]:
        hairline = -0.38 + 0.35 * x * x
        lay(top * above(y, hairline), hair)
    if present["Bangs"]:
        fringe = -0.17 + 0.03 * np.cos(25 * x)
        lay(top * above(y, fringe), 0.9 * hair)
    if present["Rosy_Cheeks"]:
        glow = np.exp(-(radius(np.abs(x), y, (0.24, 0.2), 0.12, 0.1) ** 2))
        lay(0.6 * glow * head, [0.92, 0.3, 0.35])
    lay(pair(0.17, -0.02, 0.085, 0.05), [0.95, 0.95, 0.95])
    lay(pair(0.17, -0.02, 0.04, 0.045), [0.15, 0.1, 0.08])
    lay(pair(0.17, -0.13, 0.1, 0.02), 0.5 * hair)
    lay(0.35 * ellipse(x, y, (0, 0.12), 0.05, 0.09), 0.5 * skin)
    if present["Eyeglasses"]:
        lenses = pair(0.18, -0.02, 0.155, 0.125)
        lay(lenses - pair(0.18, -0.02, 0.12, 0.09), frame)
        lay(ellipse(x, y, (0, -0.04), 0.05, 0.02), frame)
    if present["Mustache"]:
        lay(pair(0.09, 0.255, 0.12, 0.05), 0.75 * hair)
    lips = [0.8, 0.05, 0.15] if present["Wearing_Lipstick"] else 0.6 * skin
    thickness = 0.055 if present["Wearing_Lipstick"] else 0.04
    smiling = present["Smiling"]
    width = 0.24 if smiling else 0.15
    course = 0.37 + bend[smiling] * (0.5 - (x / width) ** 2)
    lay(ellipse(x, y - course, (0, 0), width, thickness), lips)
    if present["Wearing_Hat"]:
        crown = ellipse(x, y, (0, -0.42), 0.47, 0.42) * above(y, -0.36)
        lay(crown, hat)
        lay(ellipse(x, y, (0, -0.37), 0.66, 0.06), 0.8 * hat)

    picture *= rng.uniform(0.85, 1.1)
    picture += rng.normal(0, 0.03, picture.shape)
    return np.round(255 * np.clip(picture, 0, 1)).astype("uint8")


def place(rng, size):
    """Coordinates of a tilted face in a picture, and its background."""
    middle = (2 * np.arange(size) + 1) / size - 1
    across, down = np.meshgrid(middle, middle)
    slope = rng.uniform(-0.1, 0.1, (2, 3))
    picture = rng.uniform(0.35, 0.8, 3) + (
        slope[0] * across[..., None] + slope[1] * down[..., None]
    )
    angle, scale = rng.uniform(-0.15, 0.15), rng.uniform(0.9, 1.15)
    across = (across - rng.uniform(-0.15, 0.15)) / scale
    down = (down - rng.uniform(0.0, 0.2)) / scale
    x = across * np.cos(angle) + down * np.sin(angle)
    y = down * np.cos(angle) - across * np.sin(angle)
    return x, y, picture


def ellipse(x, y, center, width, height):
    """Share of each pixel inside of it, with an edge one pixel wide."""
    x, y = x - center[0], y - center[1]
    distance = radius(x, y, (0, 0), width, height) + 1e-6
    # How fast that grows here: a flat ellipse has a sharp edge, too.
    slope = radius(x, y, (0, 0), width**2, height**2) / distance + 1e-6
    return share_of((1 - distance) / slope, y)


def above(y, line):
    return share_of(line - y, y)


def share_of(depth, y):
    """From 0 to 1 within a pixel around depth 0."""
    pixel = np.abs(y[1, 0] - y[0, 0])
    return np.clip(0.5 + depth / pixel, 0, 1)
