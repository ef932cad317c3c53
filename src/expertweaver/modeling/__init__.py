"""The reference: dense and sparse FFN in a few lines, the oracle of the tests and of verification."""
