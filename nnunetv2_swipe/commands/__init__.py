"""Commands of our own; those of nnU-Net work as they are."""
