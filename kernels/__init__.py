"""Kernels, each beside its eager reference of the same signature."""
