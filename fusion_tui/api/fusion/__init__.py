"""Dialect A, "fusion"."""
