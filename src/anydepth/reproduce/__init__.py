"""The paper's experiments as recipes that anyone can run: `anydepth reproduce`."""
