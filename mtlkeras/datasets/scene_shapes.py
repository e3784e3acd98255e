"""Where rays meet the shapes of scenes, in the frame of the object.

There every shape fills the cube from -1 to 1. A ray is `origin + t direction`;
origins, directions and points are arrays of shape `[3, num_rays]`. Objects
stand on the floor and the camera is above it, so that their undersides are
never seen.
"""

import numpy as np


def meet_sphere(origin, direction):
    a = dot(direction, direction)
    b = dot(origin, direction)
    c = dot(origin, origin) - 1
    enter, leave = roots(a, b, c)
    return np.where(enter <= leave, enter, np.inf)


def meet_box(origin, direction):
    enter, leave = slabs(origin, direction)
    enter, leave = enter.max(0), leave.min(0)
    return np.where(enter <= leave, enter, np.inf)


def meet_cylinder(origin, direction):
    side, axis = [0, 2], [1]
    a = dot(direction[side], direction[side])
    b = dot(origin[side], direction[side])
    c = dot(origin[side], origin[side]) - 1
    enter, leave = roots(a, b, c)
    cap_enter, cap_leave = slabs(origin[axis], direction[axis])
    enter = np.maximum(enter, cap_enter[0])
    leave = np.minimum(leave, cap_leave[0])
    return np.where(enter <= leave, enter, np.inf)


def meet_cone(origin, direction):
    # x^2 + z^2 = h^2, where h = (1 - y) / 2 is the radius at the height y.
    # That is a double cone, so each root must be in the height of ours.
    x, y, z = direction
    radius, slope = (1 - origin[1]) / 2, -y / 2
    a = x * x + z * z - slope * slope
    b = origin[0] * x + origin[2] * z - radius * slope
    c = origin[0] * origin[0] + origin[2] * origin[2] - radius * radius
    nearest = np.full(a.shape, np.inf)
    for t in roots(a, b, c):
        height = origin[1] + t * y
        valid = np.isfinite(t) & (np.abs(height) <= 1) & (t > 0)
        nearest = np.where(valid & (t < nearest), t, nearest)
    return nearest


def sphere_normal(point):
    return point


def box_normal(point):
    size = np.abs(point)
    return np.where(size == size.max(0), np.sign(point), 0.0)


def cylinder_normal(point):
    x, y, z = point
    on_cap = y * y > x * x + z * z
    zero = np.zeros_like(y)
    return np.where(on_cap, [zero, np.sign(y), zero], [x, zero, z])


def cone_normal(point):
    x, y, z = point
    return np.stack([x, (1 - y) / 4, z])


# In the order of the classes of the segmentation, wall and floor left out.
SHAPES = [
    (meet_sphere, sphere_normal),
    (meet_box, box_normal),
    (meet_cylinder, cylinder_normal),
    (meet_cone, cone_normal),
    (meet_sphere, sphere_normal),  # an ellipsoid: scaled unevenly
]


def dot(first, second):
    # Written out: the sums of `einsum` may depend on the number of rays.
    products = first * second
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def roots(a, b, c):
    """Both roots of `a t^2 + 2 b t + c`; `inf, -inf` where there are none."""
    discriminant = b * b - a * c
    real = (discriminant > 0) & (a != 0)
    root = np.sqrt(np.where(real, discriminant, 0.0))
    divisor = np.where(real, a, 1.0)
    return (
        np.where(real, (-b - root) / divisor, np.inf),
        np.where(real, (-b + root) / divisor, -np.inf),
    )


def slabs(origin, direction):
    """Where rays enter and leave `-1 <= coordinate <= 1`, per coordinate."""
    # A ray along the slab never meets its planes: a tiny step stands for 0.
    step = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    first, second = (-1 - origin) / step, (1 - origin) / step
    return np.minimum(first, second), np.maximum(first, second)
