"""Making the neurons that run absorb what the others would have added; pure tensors."""
