"""Pure functions of arrays, written in `keras.ops` only."""
