"""Data sets: named or the user's files, as tensors in three splits."""
