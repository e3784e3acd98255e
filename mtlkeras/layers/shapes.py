def is_shape(given):
    """Whether this is the shape of one tensor, not a list of shapes."""
    return isinstance(given, (list, tuple)) and all(
        size is None or isinstance(size, int) for size in given
    )


def list_of_shapes(input_shape):
    """The shapes of one input or of a list or dict of them, as tuples."""
    if is_shape(input_shape):
        return [tuple(input_shape)]
    if isinstance(input_shape, dict):
        input_shape = input_shape.values()
    return [tuple(shape) for shape in input_shape]


def are_equal(shapes):
    """Whether shapes are equal but for the size of the batch."""
    return len({shape[1:] for shape in shapes}) == 1
