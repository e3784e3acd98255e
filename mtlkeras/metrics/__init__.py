"""Metrics of multi-task models."""

__all__ = []
