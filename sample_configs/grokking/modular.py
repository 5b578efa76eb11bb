"""Data and model of the grokking study: the table of a binary operation modulo p, and a network that learns it."""

import operator

import numpy as np
import torch
from torch import Tensor, nn

from ckpt_probe.errors import UsageError

OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}

LARGEST = 4096
"""Largest modulus, so that the table of p² pairs fits into memory."""


def modular_table(
    p: int, op: str = "add", fraction: float = 0.3, split_seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return all pairs (a, b) with 0 ≤ a, b < p, labelled by `a op b mod p` (Power et al. 2022, arXiv 2201.02177).

    Args:
        p: Modulus, from 2 to 4096.
        op: Operation: add, subtract or multiply.
        fraction: Fraction of the pairs in the split train; the others are in the split test.
        split_seed: Seed that chooses the pairs of train.

    Returns:
        Inputs, shape (N, 2), int64, and labels, shape (N,), of each split.

    Raises:
        UsageError: If an argument is invalid, or a split would be empty.
    """
    if type(p) is not int or not 2 <= p <= LARGEST:
        raise UsageError(f"p: expected a whole number from 2 to {LARGEST}, found {p!r}")
    if op not in list(OPERATIONS):
        raise UsageError(f"op: expected one of {', '.join(OPERATIONS)}, found {op!r}")
    if type(fraction) not in (int, float) or not 0 < fraction < 1:
        raise UsageError(f"fraction: expected a number between 0 and 1, found {fraction!r}")
    if type(split_seed) is not int or split_seed < 0:
        raise UsageError(f"split_seed: expected a whole number of at least 0, found {split_seed!r}")
    count = round(fraction * p**2)
    if not 0 < count < p**2:
        raise UsageError(f"fraction = {fraction} of {p**2} pairs leaves no pair to train on, or to test")
    a, b = np.divmod(np.arange(p**2), p)
    inputs, labels = np.stack([a, b], axis=1), OPERATIONS[op](a, b) % p
    chosen = np.zeros(p**2, dtype=bool)
    chosen[np.random.default_rng(split_seed).permutation(p**2)[:count]] = True
    return {"train": (inputs[chosen], labels[chosen]), "test": (inputs[~chosen], labels[~chosen])}


class ModularMLP(nn.Module):
    """A network that sums the embeddings of two operands and has one hidden layer: (n, 2) int64 → (n, modulus)."""

    def __init__(self, modulus: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(modulus, embedding)
        self.hidden = nn.Linear(embedding, hidden)
        self.classifier = nn.Linear(hidden, modulus)

    def forward(self, operands: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.hidden(self.embedding(operands).sum(dim=1))))


def modular_mlp(modulus: int, embedding: int = 128, hidden: int = 512) -> nn.Module:
    """Return a `ModularMLP`.

    Args:
        modulus: Number of operands and classes.
        embedding: Width of the embedding.
        hidden: Width of the hidden layer.
    """
    return ModularMLP(modulus, embedding, hidden)
