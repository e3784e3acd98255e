from mtlkeras.losses.masked_loss import MaskedLoss

__all__ = ["MaskedLoss"]
