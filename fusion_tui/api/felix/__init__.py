"""Dialect B, "felix"."""
