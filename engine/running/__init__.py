"""A queue carried out: from a claim to a worker's end."""
