"""One pass over the data: every batch once, resumable."""
