"""Documents of text as windows of tokens, for language models."""
