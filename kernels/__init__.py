"""Kernels: in Triton in the files that end in `_triton` and in `topp`, each beside its eager twin."""
