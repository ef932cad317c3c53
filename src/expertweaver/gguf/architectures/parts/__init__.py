"""What several GGUF architectures share."""
