"""Commands around a run: plan, doctor, rehearse, benchmarks."""
