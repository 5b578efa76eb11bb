"""A model's head: the layer whose rows and weights are analyzed, or the pooled features of a model without one."""
