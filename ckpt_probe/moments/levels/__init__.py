"""Sample, class and within-class level: how the entropies of each are found from what the moments hold."""
