"""Our own model class for what stock classes cannot say, and how transformers and vLLM get to know it."""
