"""Plots drawn by matplotlib, for a paper: SVG, PNG or PDF."""
