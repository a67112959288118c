"""The pass over the data made into a trace."""
