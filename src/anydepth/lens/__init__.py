"""The logit lens of a text: the most probable token at every depth and position."""
