"""Paths between two checkpoints and planes through three, evaluated position by position; names load when used."""

from ckpt_probe.lazy import lazy_names

__all__, __getattr__ = lazy_names(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
