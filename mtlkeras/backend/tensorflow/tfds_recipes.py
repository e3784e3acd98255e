"""What of some TensorFlow Datasets are inputs, and what are tasks.

A target is a path of a feature or a function from an example to a tensor.
"""

import dataclasses

import tensorflow as tf

# Cityscapes' own table: `labelIds` of the 19 classes that are evaluated.
CITYSCAPES_CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26)
CITYSCAPES_CLASSES += (27, 28, 31, 32, 33)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Inputs and tasks of one data set.

    Args:
        inputs: Path, function, or a dict of these.
        targets: Dict from task to path or function.
        default: Tuple of the tasks to take if none are named.
        joined: Dict from task to `(config, feature)`: targets made from a
            feature of another config.
        key: Feature that both configs have, equal for the same example.
    """

    inputs: object
    targets: dict
    default: tuple
    joined: dict = dataclasses.field(default_factory=dict)
    key: str | None = None


def recipe_for(name, features):
    """The `Recipe` of a data set, or `None`.

    Args:
        name: Name of its builder.
        features: Its features, a mapping.
    """
    return RECIPES[name](features) if name in RECIPES else None


def celeb_a(features):
    attributes = {name: f"attributes/{name}" for name in features["attributes"]}
    return Recipe("image", attributes, tuple(attributes))


def nyu_depth_v2(features):
    return Recipe(
        "image",
        {"depth": lambda e: tf.cast(e["depth"], tf.float32)[..., None]},
        ("depth",),
    )


def cityscapes(features):
    return Recipe(
        "image_left",
        {
            "segmentation": lambda e: class_of(e["segmentation_label"]),
            "disparity": lambda e: or_nan(e["disparity_map"]),
        },
        ("segmentation", "disparity"),
        {
            "segmentation": ("semantic_segmentation", "segmentation_label"),
            "disparity": ("stereo_disparity", "disparity_map"),
        },
        "image_id",
    )


def oxford_iiit_pet(features):
    return Recipe(
        "image",
        {
            "breed": "label",
            "species": "species",
            # 1 pet, 2 background, 3 border
            "mask": lambda e: tf.cast(e["segmentation_mask"], tf.int32) - 1,
            "head": head_box,
        },
        ("breed", "species", "mask"),
    )


def shapes3d(features):
    labels = [name for name in features if name.startswith("label_")]
    targets = {name.removeprefix("label_"): name for name in labels}
    return Recipe("image", targets, tuple(targets))


def movielens(features):
    return Recipe(
        {
            "user_id": lambda e: tf.strings.to_number(e["user_id"], tf.int32),
            "movie_id": lambda e: tf.strings.to_number(e["movie_id"], tf.int32),
        },
        {
            "rating": "user_rating",
            "liked": lambda e: e["user_rating"] >= 4,
            "genres": lambda e: multi_hot(
                e["movie_genres"], features["movie_genres"].feature.num_classes
            ),
            "gender": "user_gender",
        },
        ("rating", "liked"),
    )


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        celeb_a,
        cityscapes,
        movielens,
        nyu_depth_v2,
        oxford_iiit_pet,
        shapes3d,
    )
}


def class_of(label_ids):
    """0 to 18 for the classes that are evaluated, -1 for the others."""
    table = tf.fill([256], -1)
    ids = tf.constant(CITYSCAPES_CLASSES)[:, None]
    table = tf.tensor_scatter_nd_update(table, ids, tf.range(len(ids)))
    return tf.gather(table, tf.cast(label_ids, tf.int32))


def or_nan(disparity):
    """NaN where nothing was measured, which is coded by 0."""
    disparity = tf.cast(disparity, tf.float32)
    return tf.where(disparity > 0, disparity, float("nan"))


def head_box(example):
    """NaN where there is no box: all of the test split."""
    box = example["head_bbox"]
    return tf.where(tf.reduce_any(box > 0), box, float("nan"))


def multi_hot(indices, num_classes):
    return tf.reduce_sum(tf.one_hot(indices, num_classes), 0)
