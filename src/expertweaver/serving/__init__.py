"""Our own model class for what stock classes cannot say, its registration with transformers and vLLM, and an experts
function for CPU.
"""

INDEX_LOOP = "index_loop"
"""Name of our experts function in transformers."""
