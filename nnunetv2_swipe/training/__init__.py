"""Training: label crop -> points -> loss."""
