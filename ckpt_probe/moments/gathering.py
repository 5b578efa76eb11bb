"""Small blocks of rows gathered before they enter the moments: one by one they would cost far more a row."""

import torch
from torch import Tensor

from ckpt_probe.moments.accumulator import Moments
from ckpt_probe.moments.quality import Head, Quality, Scored, double

ROWS_AT_ONCE = 8192
BYTES_AT_ONCE = 2**26


class Gathering:
    """Class moments, and accuracy and loss, of blocks that come in any size; `finish` adds what still waits.

    head: gives the logits of blocks that come without.
    """

    def __init__(self, moments: Moments, head: Head | None = None) -> None:
        self.moments = moments
        self.quality = Quality()
        self._head = head
        self._waiting: list[tuple[Tensor, Tensor, Tensor | Scored | None]] = []
        self._rows = self._bytes = 0

    def add(self, features: Tensor, labels: Tensor, scores: Tensor | Scored | None = None) -> None:
        """A block of features (n, D), labels (n,), and logits (n, C) or what is known in their place.

        The tensors must not change afterwards.
        Errors as `Moments.update`, in this call or a later one.
        """
        self._waiting.append((features, labels, scores))
        self._rows += len(labels)
        self._bytes += features.nbytes
        if self._rows >= ROWS_AT_ONCE or self._bytes >= BYTES_AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Add the blocks that wait."""
        if not self._waiting:
            return
        waiting, self._waiting, self._rows, self._bytes = self._waiting, [], 0, 0
        features, labels = torch.cat([block[0] for block in waiting]), torch.cat([block[1] for block in waiting])
        self.moments.update(features, labels)
        logits = [block[2] for block in waiting if isinstance(block[2], Tensor)]
        scored = [(block[2], block[1]) for block in waiting if isinstance(block[2], Scored)]
        for known, of_block in scored:
            self.quality.update_scores(known, of_block)
        if logits:
            self.quality.update(double(torch.cat(logits)), labels)
        elif self._head is not None and not scored:
            self.quality.update(self._head.logits(features), labels)
