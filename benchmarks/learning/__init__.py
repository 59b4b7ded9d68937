"""Do dense hindsight rewards help, and do they ever hurt? Arms x tasks x seeds; see `benchmarks/README.md`."""
