"""Inference: embeddings -> dense labels."""
