"""The rows, or the moments, of one checkpoint and split → its reading: the record, and what is drawn beside it."""
