"""What a run will need and what suits it: memory by part, held against this machine, and settings to start from."""
