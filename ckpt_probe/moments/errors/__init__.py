"""Uncertainty of the metrics: standard errors by the influence of single rows, and the bias from their number."""
