"""Files and folders that are never half-written, with checksums, locks and limits."""
