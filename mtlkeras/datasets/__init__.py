from mtlkeras.datasets.interleave import interleave
from mtlkeras.datasets.multi_digits import multi_digits
from mtlkeras.datasets.zip import zip

__all__ = ["interleave", "multi_digits", "zip"]
