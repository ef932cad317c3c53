"""Quality of dense and converted models on text, through stock transformers only."""
