"""Preprocessing: what nnU-Net names in a plan, and the source frame."""

from nnunetv2_swipe.preprocessing.swipe_preprocessor import SwIPEPreprocessor, SwIPEPreprocessor_withSourceFrame

__all__ = ["SwIPEPreprocessor", "SwIPEPreprocessor_withSourceFrame"]
