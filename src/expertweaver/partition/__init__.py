"""Which neurons are shared and which expert owns the rest; pure tensors."""
