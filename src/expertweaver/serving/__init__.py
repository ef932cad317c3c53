"""Help for those who serve a converted model; nothing in a model folder depends on it."""

INDEX_LOOP = "index_loop"
"""Name of our experts function in transformers."""
