"""Record metrics during training: plain loops, Hugging Face's Trainer, Lightning, torchmetrics; loaded when used."""

from ckpt_probe.lazy import lazy_names

__all__, __getattr__ = lazy_names(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
