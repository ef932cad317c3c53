"""How each stored format is named and laid out in GGUF; one file a format, under the format's own name."""
