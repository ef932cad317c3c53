"""Text to packed token samples, and the statistics of a layer on them."""
