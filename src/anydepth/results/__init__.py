"""What was measured: saved, loaded, merged, compared. Nothing here runs a model or draws."""
