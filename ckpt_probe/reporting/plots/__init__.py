"""Records, paths, planes and portraits → what a plot shows."""
