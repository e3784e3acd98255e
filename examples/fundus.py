"""Pictures that look a little like photographs of the back of the eye.

SYNTHETIC: drawn from formulas for `glaucoma.py`, so that it runs without
patients' data. Nothing that is measured on them says anything about medicine.

A picture shows a bright optic disc with a paler cup in it, vessels that leave
the disc, a dark fovea, uneven light and noise. The label "glaucoma" is drawn
with a probability that rises with the vertical cup-to-disc ratio, so that even
the true ratio cannot tell it with certainty.
"""

import numpy as np

# Half of the eyes with this ratio have the label, and how fast that changes.
EVEN_RATIO, RATIO_SCALE = 0.6, 0.06
# The paper's heat map: 50 square pixels in pictures of 256 x 256. Ours show
# less of the eye, a disc 1.6 times as wide, and so is the heat map.
HEAT_VARIANCE = 50 / 256**2
MAGNIFICATION = 1.6


def fundus_pictures(number, size, seed, first=0):
    """Draws pictures number `first`, `first + 1`, ...

    Args:
        number: Integer, how many.
        size: Integer, height and width in pixels.
        seed: Integer. A picture depends on it and on its own number only.
        first: Integer, number of the first picture. Defaults to `0`.

    Returns:
        `x, y, ratio`: pictures `[number, size, size, 3]` with values from 0 to
        1, a dict of the targets `"glaucoma"` `[number, 1]`, `"disc"`, `"cup"`
        and `"fovea"` `[number, size, size, 1]`, and the true vertical
        cup-to-disc ratios `[number]`. All are float32.
    """
    eyes = [
        draw_eye(np.random.default_rng([seed, index]), size)
        for index in range(first, first + number)
    ]
    pictures, labels, discs, cups, foveas, ratios = map(
        lambda values: np.array(values, "float32"), zip(*eyes, strict=True)
    )
    y = {
        "glaucoma": labels[:, None],
        "disc": discs[..., None],
        "cup": cups[..., None],
        "fovea": foveas[..., None],
    }
    return pictures, y, ratios


def draw_eye(rng, size):
    # Pixels from -1 to 1, x to the side of the nose, y down.
    middle = (2 * np.arange(size) + 1) / size - 1
    x, y = np.meshgrid(middle * rng.choice([-1, 1]), middle)

    disc = np.array([rng.uniform(0.35, 0.5), rng.uniform(-0.12, 0.12)])
    width = rng.uniform(0.19, 0.25)
    height = width * rng.uniform(1.0, 1.2)
    ratio = np.clip(rng.normal(0.5, 0.15), 0.15, 0.9)
    label = rng.random() < 1 / (1 + np.exp((EVEN_RATIO - ratio) / RATIO_SCALE))
    # The cup lies in the disc and is rounder than it.
    cup_height = ratio * height
    cup_width = min(cup_height * rng.uniform(0.9, 1.1), 0.92 * width)
    shift = rng.uniform(-0.7, 0.7) * (width - cup_width)
    cup = disc + [shift, rng.uniform(-0.5, 0.5) * (height - cup_height) * 0.5]
    fovea = disc + [-rng.uniform(0.75, 0.95), rng.uniform(0.05, 0.2)]

    in_disc = radius(x, y, disc, width, height)
    in_cup = radius(x, y, cup, cup_width, cup_height)

    red = rng.uniform(0.55, 0.8)
    base = red * np.array([1, rng.uniform(0.4, 0.6), rng.uniform(0.15, 0.3)])
    picture = np.ones((size, size, 1)) * base
    dark = np.exp(-(radius(x, y, fovea, 0.16, 0.16) ** 2))
    picture *= 1 - rng.uniform(0.25, 0.45) * dark[..., None]
    glow = np.exp(-(radius(x, y, disc, 2 * width, 2 * height) ** 2))
    picture *= 1 + 0.25 * glow[..., None]
    yellow = np.array([1.0, rng.uniform(0.7, 0.8), rng.uniform(0.4, 0.5)])
    pale = np.array([1.0, rng.uniform(0.86, 0.95), rng.uniform(0.65, 0.8)])
    blend(picture, soft_edge(in_disc, 0.08), rng.uniform(0.8, 0.95) * yellow)
    cup_edge = soft_edge(in_cup, rng.uniform(0.08, 0.2))
    blend(picture, cup_edge, rng.uniform(0.9, 1.0) * pale)
    vessels = draw_vessels(rng, x - disc[0], y - disc[1])
    blend(picture, 0.75 * vessels, base * [0.55, 0.3, 0.5])

    slope = rng.uniform(-0.2, 0.2, 2)
    light = 1 + slope[0] * x + slope[1] * y - 0.25 * (x * x + y * y)
    picture *= rng.uniform(0.8, 1.1) * light[..., None]
    picture *= (x * x + y * y < 0.97)[..., None]  # the camera's aperture
    picture += rng.normal(0, 0.03, picture.shape)
    return (
        np.clip(picture, 0, 1),
        label,
        in_disc < 1,
        in_cup < 1,
        # Here the picture is 2 wide.
        heat_map(x, y, fovea, HEAT_VARIANCE * (2 * MAGNIFICATION) ** 2),
        ratio,
    )


def radius(x, y, center, width, height):
    """Distance from the center; 1 on an ellipse with these half axes."""
    return np.hypot((x - center[0]) / width, (y - center[1]) / height)


def soft_edge(distance, softness):
    return 0.5 - 0.5 * np.tanh((distance - 1) / softness)


def blend(picture, share, color):
    """Lays a colour over a picture, in place."""
    picture += share[..., None] * (color - picture)


def draw_vessels(rng, x, y):
    """How much of a pixel vessels cover; they start at the origin.

    A vessel is an angle that changes with the distance from the origin.
    """
    distance, angle = np.hypot(x, y), np.arctan2(y, x)
    covered = np.zeros_like(x)
    # The large arcs above and below, which bend around the fovea, and others.
    arcs = [(sign * 1.7, sign * 0.75, 0.035) for sign in (-1, 1)] * 2
    arcs += [(rng.uniform(-3, 3), rng.uniform(-0.8, 0.8), 0.02)] * 4
    for start, bend, width in arcs:
        start = start + rng.normal(0, 0.25)
        bend = bend + rng.normal(0, 0.15)
        wave = rng.uniform(0, 0.06) * np.sin(rng.uniform(8, 14) * distance)
        course = start + bend * distance + wave
        away = (angle - course + np.pi) % (2 * np.pi) - np.pi
        away = distance * np.sin(np.clip(np.abs(away), 0, np.pi / 2))
        width = width * np.clip(1.2 - 0.6 * distance, 0.3, None)
        covered = np.maximum(covered, np.exp(-((away / width) ** 2)))
    return covered


def heat_map(x, y, position, variance):
    """A Gaussian around a position; its largest value is 1."""
    squared = (x - position[0]) ** 2 + (y - position[1]) ** 2
    heat = np.exp(-squared / (2 * variance))
    return heat / heat.max()
