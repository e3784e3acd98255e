from keras import ops

MAX_SWEEPS = 12


def symmetric_eigen(matrix):
    """Eigenvalues and eigenvectors of a symmetric matrix (Jacobi's method).

    All rotations of disjoint pairs of axes are done at once. It finds small
    eigenvalues to rounding; compiled `eigh` stops at about 1e-7 of the largest
    one, too early for a decision about rank.

    Args:
        matrix: Float64 tensor of shape `[size, size]`.

    Returns:
        Tuple `(values, vectors)` of shapes `[size]` and `[size, size]`, in no
        order; column `i` of `vectors` belongs to `values[i]`.
    """
    size = matrix.shape[0]
    if size == 1:
        return ops.diagonal(matrix), ops.eye(1, dtype="float64")
    # An axis that nothing rotates makes the number even.
    padding = [[0, size % 2]] * 2
    matrix = ops.pad(matrix, padding)
    count = size + size % 2
    half = count // 2
    identity = ops.eye(count, dtype="float64")

    def rotate(_, state):
        a, vectors = state
        # Axis i of the first half is paired with axis i of the second.
        diagonal = ops.diagonal(a)
        between = ops.diagonal(a[:half, half:])
        turns = between != 0.0
        ratio = diagonal[half:] - diagonal[:half]
        ratio = ratio / (2.0 * ops.where(turns, between, 1.0))
        sign = 1.0 - 2.0 * ops.cast(ratio < 0, "float64")
        tangent = sign / (ops.abs(ratio) + ops.sqrt(1.0 + ratio * ratio))
        tangent = ops.where(turns, tangent, 0.0)
        cosine = 1.0 / ops.sqrt(1.0 + tangent * tangent)
        sine = tangent * cosine

        def columns(m):
            first, second = m[:, :half], m[:, half:]
            return in_next_order(
                first * cosine - second * sine, first * sine + second * cosine
            )

        a = columns(ops.transpose(columns(a)))
        return (a + ops.transpose(a)) / 2.0, columns(vectors)

    def sweep(a, vectors, done):
        a, vectors = ops.fori_loop(0, count - 1, rotate, (a, vectors))
        diagonal = ops.maximum(ops.abs(ops.diagonal(a)), 1e-300)
        root = ops.sqrt(diagonal)
        off = ops.abs(a * (1.0 - identity)) / root[:, None] / root[None, :]
        return a, vectors, ops.max(off) < 1e-14

    a, vectors, _ = ops.while_loop(
        lambda a, vectors, done: ops.logical_not(done),
        sweep,
        (matrix, identity, ops.zeros((), "bool")),
        maximum_iterations=MAX_SWEEPS,
    )
    # A sweep ends in the order in which it began, so the padding is last.
    return ops.diagonal(a)[:size], vectors[:size, :size]


def in_next_order(first, second):
    """Columns of two halves, as a round-robin tournament moves its players.

    The first one stays and the others move on by a place, around both halves.
    After as many rounds as there are columns, less one, each has met each and
    all are back. Cutting and joining is faster than taking columns by index.
    """
    if first.shape[1] == 1:
        return ops.concatenate([first, second], 1)
    return ops.concatenate(
        [
            first[:, :1],
            second[:, :1],
            first[:, 1:-1],
            second[:, 1:],
            first[:, -1:],
        ],
        1,
    )


def pseudo_inverse_apply(matrix, vector, tolerance):
    """`pinv(matrix) @ vector` of a symmetric positive semidefinite matrix.

    Args:
        matrix: Float64 tensor of shape `[size, size]`.
        vector: Float64 tensor of shape `[size]`.
        tolerance: Eigenvalues up to this times the largest count as 0.
    """
    values, vectors = symmetric_eigen(matrix)
    kept = values > tolerance * ops.max(values)
    inverse = ops.where(kept, 1.0 / ops.where(kept, values, 1.0), 0.0)
    inner = ops.matmul(vector[None, :], vectors)[0] * inverse
    return ops.matmul(vectors, inner[:, None])[:, 0]
