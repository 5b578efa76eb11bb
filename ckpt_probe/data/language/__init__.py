"""Documents as windows of tokens, for language models."""
