"""What one rank does, from its first batch to its last checkpoint."""
