"""What the benchmarks that measure anydepth beside other libraries share."""
