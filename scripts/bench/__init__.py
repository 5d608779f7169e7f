"""Parts of the benchmarks: the machine, the two models, the correctness check, the report."""
