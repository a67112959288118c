"""The pages of reports, one for each kind of result."""
