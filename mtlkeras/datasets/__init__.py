from mtlkeras.datasets.multi_digits import multi_digits

__all__ = ["multi_digits"]
