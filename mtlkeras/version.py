"""The one home of the version.

A plain literal and no imports: setuptools reads it without running the package,
so that building a wheel needs neither Keras nor TensorFlow.
"""

__version__ = "0.1.0"
