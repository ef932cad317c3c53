"""Scoring the routed experts; pure tensors."""
