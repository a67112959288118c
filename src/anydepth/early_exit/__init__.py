"""Early exit as people call it: the classifier that stops computing, and its curve over all thresholds."""
