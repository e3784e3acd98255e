from mtlkeras.datasets.multi_digits import multi_digits
from mtlkeras.datasets.scenes import scenes

__all__ = ["multi_digits", "scenes"]
