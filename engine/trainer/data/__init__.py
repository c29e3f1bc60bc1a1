"""From dataset rows to batches: rendered, tokenised with the mask of what is trained, split, packed, in order."""
