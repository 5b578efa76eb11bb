"""Descriptions of plots, computed from records, paths, planes and portraits."""
