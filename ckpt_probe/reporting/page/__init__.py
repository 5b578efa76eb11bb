"""The page: one HTML file that holds its data, its drawing and its style, and asks for nothing else."""

from ckpt_probe.reporting.page.document import page_of, write_page

__all__ = ["page_of", "write_page"]
