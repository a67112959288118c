"""Shared computations of measures: states in chunks, covariances, Gram matrices, nearest neighbours, precision."""
