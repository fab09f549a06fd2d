"""Evaluation of a run's models on held-out data."""
