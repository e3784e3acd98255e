from mtlkeras.datasets.from_tfds import from_tfds
from mtlkeras.datasets.interleave import interleave
from mtlkeras.datasets.multi_digits import multi_digits
from mtlkeras.datasets.scenes import scenes
from mtlkeras.datasets.zip import zip

__all__ = ["from_tfds", "interleave", "multi_digits", "scenes", "zip"]
