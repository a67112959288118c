"""The command line. cyclopts and rich are used here and nowhere else."""
