"""Models of other libraries by name, with sizes from a checkpoint's tensors and from the files beside it."""
