"""Models of other libraries by name, at the sizes that a checkpoint tells, and what the files beside one say."""
