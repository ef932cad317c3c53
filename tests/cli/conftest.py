"""A fresh bench for every test."""

from support.benches import bench, template

__all__ = ["bench", "template"]
