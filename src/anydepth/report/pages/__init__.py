"""HTML pages of reports, one module for each kind of result."""
