"""Dense models on disk: families as data, lazy tensors, one layer at a time."""
