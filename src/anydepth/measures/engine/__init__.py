"""What measures share: states read in chunks, covariances, Gram matrices, nearest neighbours, precision."""
