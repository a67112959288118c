"""Results of measurements: save, load, merge and compare them. Nothing here runs a model or draws."""
