import numpy as np
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
    identity = ops.eye(size, dtype="float64")
    if size == 1:
        return ops.diagonal(matrix), identity
    rounds = ops.convert_to_tensor(pairings(size))
    lower = ops.arange(size)

    def rotate(k, state):
        a, vectors = state
        partner = ops.take(rounds, k, axis=0)
        diagonal = ops.diagonal(a)
        other = ops.take(diagonal, partner)
        between = ops.sum(ops.take(identity, partner, axis=0) * a, -1)
        first = lower < partner
        # The pair is (p, q) with p < q, seen from either side.
        difference = ops.where(first, other - diagonal, diagonal - other)
        turns = ops.logical_and(between != 0.0, partner != lower)
        ratio = difference / (2.0 * ops.where(turns, between, 1.0))
        sign = 1.0 - 2.0 * ops.cast(ratio < 0, "float64")
        tangent = sign / (ops.abs(ratio) + ops.sqrt(1.0 + ratio * ratio))
        tangent = ops.where(turns, tangent, 0.0)
        # Both of a pair must turn by the same angle, to the last bit; where
        # their values are equal, rounding decides what the angle is.
        tangent = ops.where(first, tangent, ops.take(tangent, partner))
        cosine = 1.0 / ops.sqrt(1.0 + tangent * tangent)
        sine = tangent * cosine * (1.0 - 2.0 * ops.cast(first, "float64"))

        def columns(m):
            return m * cosine + ops.take(m, partner, axis=1) * sine

        a = columns(ops.transpose(columns(a)))
        return (a + ops.transpose(a)) / 2.0, columns(vectors)

    def sweep(a, vectors, done):
        a, vectors = ops.fori_loop(0, rounds.shape[0], rotate, (a, vectors))
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
    return ops.diagonal(a), vectors


def pairings(size):
    """All pairs in `size - 1` rounds (or `size`), each index once per round.

    Returns:
        Integer array of shape `[num_rounds, size]`: the partner of each index
        in each round; with odd `size` one index has itself.
    """
    count = size + size % 2
    circle = np.arange(count)
    rounds = []
    for _ in range(count - 1):
        partner = np.arange(size)
        for p, q in zip(circle[: count // 2], circle[::-1], strict=False):
            if p < size and q < size:
                partner[p], partner[q] = q, p
        rounds.append(partner)
        # One stays, the others move on by a place.
        circle = np.concatenate([circle[:1], circle[-1:], circle[1:-1]])
    return np.array(rounds, dtype="int32")


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
