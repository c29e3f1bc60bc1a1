"""What may be asked of jobs, and what follows in the store."""
