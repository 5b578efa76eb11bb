"""Samples of several lengths: those of one length are forwarded together and without padding, as if each were alone."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ckpt_probe.data import LEFT_OUT


def equal_lengths(
    inputs: Mapping[str, Tensor], labels: Tensor, lengths: Tensor
) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Divide a batch that is padded at the end into batches without padding.

    Args:
        inputs: Tensors (n, T, …) by name, T the largest of the lengths.
        labels: Labels (n,), or (n, T) if each position has one.
        lengths: The length of each sample, (n,).

    Yields:
        For each length the numbers of its samples (m,), their inputs (m, length, …) and their labels.
    """
    longest = int(lengths.max())

    def cut(tensor: Tensor, numbers: Tensor, length: int) -> Tensor:
        chosen = tensor[numbers.to(tensor.device)]
        return chosen[:, :length] if tensor.ndim > 1 and tensor.shape[1] == longest else chosen

    for length in lengths.unique().tolist():
        numbers = (lengths == length).nonzero()[:, 0]
        parts = {name: cut(tensor, numbers, length) for name, tensor in inputs.items()}
        yield numbers, parts, cut(labels, numbers, length)


def rows_of_samples(labels: Tensor, rows: int) -> Tensor:
    """Return how many of the rows that a batch gives belong to each sample, (n,).

    Args:
        labels: Labels (n,), or (n, positions), where a position that is left out gives no row.
        rows: The number of rows of the batch.
    """
    if labels.ndim == 2:
        return (labels != LEFT_OUT).sum(dim=1)
    return labels.new_full(labels.shape, rows // len(labels))
