"""One widget per file; they show what they are handed and know nothing of the store."""
