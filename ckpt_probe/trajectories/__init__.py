"""Series of checkpoints in weight space, without model and data: audit, motion and spectra of weight matrices."""

from ckpt_probe.lazy import lazy_names

__all__, __getattr__ = lazy_names(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
