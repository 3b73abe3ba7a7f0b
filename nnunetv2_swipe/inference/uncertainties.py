"""Names of the maps of uncertainty, for commands, too, that must not import PyTorch to read their arguments."""

UNCERTAINTIES = ("label", "patches", "mirroring", "folds")
"""What varies: the label, given its probabilities; these, over the nearest patches, mirrored passes and folds."""
TOTAL_UNCERTAINTY = "uncertainty"
"""The sum of the four."""
