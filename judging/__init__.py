"""Judging: one model scores answers, compares its own judgments, and both become preference pairs."""
