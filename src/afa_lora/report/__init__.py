"""What a person gets to see: curves, tables, progress."""
