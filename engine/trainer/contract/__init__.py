"""Contraction: fewer neurons or layers, chosen and repaired on text that the model writes itself."""
