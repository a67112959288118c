"""Reports and charts of traces, comparisons, calibrations and the logit lens: HTML pages that work offline."""
