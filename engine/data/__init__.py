"""Datasets before training: row shapes and their faults, reading every kind of file, imports, what a model will see."""
