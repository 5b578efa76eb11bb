"""A model's head: the layer whose rows and weights are analyzed, or what stands in for it where there is none."""
