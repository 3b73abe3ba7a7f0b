"""The network: crop -> embeddings -> logits at continuous positions."""
