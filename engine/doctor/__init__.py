"""What may be wrong with this machine, its data folder and its background, each with what was seen and a remedy."""
