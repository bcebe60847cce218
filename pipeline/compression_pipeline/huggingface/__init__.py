"""Hugging Face checkpoints: reading, checking, writing, and the exact mapping to Megatron's names."""
