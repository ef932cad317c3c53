"""A converted model as one GGUF file for llama.cpp: names and sizes, vocabulary, types, writing and reading back."""
