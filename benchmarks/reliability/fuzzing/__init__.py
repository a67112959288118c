"""The parts of the fuzzer: what is tried, how it is run, and what must hold."""
