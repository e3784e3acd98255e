"""Dense layers, softmax gates and their mix in NumPy, float64."""

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def dense(layer, x, relu=False):
    kernel, bias = (np.array(v, "float64") for v in layer.weights)
    outputs = x @ kernel + bias
    return np.maximum(outputs, 0.0) if relu else outputs


def mix(gate, x, experts):
    """`sum_e softmax(x W)[e] expert_e`, at each position of `x`."""
    weights = softmax(x @ np.array(gate.kernel, "float64"))
    return sum(weights[..., [e]] * y for e, y in enumerate(experts))
