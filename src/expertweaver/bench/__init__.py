"""Speed, measured dense beside sparse in one run."""
