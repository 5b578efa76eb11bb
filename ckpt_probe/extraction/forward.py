"""Run forward passes that yield the classifier's inputs and outputs in blocks, while the next batch is prepared."""

import ctypes
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor, nn

import ckpt_probe.models as models
from ckpt_probe.data import LEFT_OUT, UNLABELLED, Split, ready_batches, split_lengths
from ckpt_probe.errors import DataError, last_line
from ckpt_probe.extraction.blocks import Block, score_logits, score_rows
from ckpt_probe.models import Backbone, Batch, Head, Taps
from ckpt_probe.progress import NullProgress, Progress, Task

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Numbers of two parameters of glibc's mallopt."""
LARGEST_ON_HEAP = 32 * 2**20
"""Bytes; the maximum of glibc, which it also reaches by itself after blocks of that size were freed."""
RETAINED = 512 * 2**20
"""Free bytes at the end of the heap that are not returned to the system."""


def forward_blocks(
    model: nn.Module,
    head: Head | Backbone,
    split: Split,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
    start: int = 0,
    stop: int | None = None,
    taps: Taps | None = None,
    progress: Progress | None = None,
    bar: Task | None = None,
) -> Generator[Block, None, None]:
    """Run a model in evaluation mode over samples of a split, once each, in order.

    The model is moved to `device` and `dtype` and left there. If the device runs out of memory, the batch size is
    halved for the rest of the split, with a message to `progress`. Close the generator (`contextlib.closing`) if you
    stop before its end; this ends its worker thread.

    Args:
        model: Model.
        head: Classifier of the model.
        split: Samples.
        batch_size: Samples per forward pass.
        device: Device of the forward pass.
        dtype: Precision of the forward pass.
        limit: Number of samples that are used; all if None.
        start: First sample.
        stop: Sample after the last one; None for `limit`.
        taps: Layers whose rows are returned beside the classifier's input.
        progress: Where messages go.
        bar: Progress bar, advanced by rows.

    Raises:
        DataError: If the classifier's input is not one row per sample, or as in `Taps.tapping` and `Taps.rows_in`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    # In this order float64 tensors, which MPS does not support, are never moved to it.
    models.cast_floats(model, dtype).to(device=device).eval()
    with ready_batches(split, batch_size, limit, start=start, stop=stop, pinned=device.type == "cuda") as batches:
        yield from forward_batches(
            model, head, batches, device=device, dtype=dtype, first=start, taps=taps, progress=progress, bar=bar
        )


def forward_batches(
    model: nn.Module,
    head: Head | Backbone,
    batches: Iterable[tuple[Batch, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    first: int = 0,
    taps: Taps | None = None,
    progress: Progress | None = None,
    bar: Task | None = None,
) -> Iterator[Block]:
    """Run an unchanged model over batches of inputs (n, …) and labels (n,).

    Only floating-point inputs are cast, to `dtype`. If every position of a sample is a row, such as the tokens of a
    text, labels have shape (n, positions), rows labelled −100 are left out, and with `is_scored` never all logits are
    in memory. Samples with known lengths are forwarded without padding, so that they do not depend on each other.
    Memory errors of the device are handled as in `forward_blocks`. The rows of a sample are those of one document,
    unless the batch states other documents (`DOCUMENTS`).

    Args:
        model: Model.
        head: Classifier of the model.
        batches: Batches of inputs and labels.
        device: Device of the model.
        dtype: Precision of the model.
        first: Number of the first sample.
        taps: Layers whose rows are returned beside the classifier's input.
        progress: Where messages go.
        bar: Progress bar, advanced by rows.

    Raises:
        DataError: As in `forward_blocks`.
    """
    progress = progress or NullProgress()
    runner = _Runner(model, head, taps or Taps(), progress, first)
    for block in _on_cpu(runner.blocks(batches, device, dtype)):
        if bar is not None:
            bar.advance(len(block.labels))
        yield block
    if runner.left_out:
        progress.message(f"{runner.left_out:,} positions are padding, or labelled {LEFT_OUT}, and left out")


def labels_of_rows(
    head: Head | Backbone, rows: int, labels: Tensor, inputs: Batch | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return labels of rows, and which rows are used.

    Rows labelled −100, and padding according to the attention mask of `inputs`, are not used. If a sample has no label
    (−1), none of its positions has one.

    Args:
        head: Classifier of the model.
        rows: Number of rows m.
        labels: Labels of the samples, shape (n,), or (n, positions) if every position is a row.
        inputs: Inputs of the model.

    Returns:
        Labels of all rows, shape (m,), and a mask of the used rows, shape (m,), or None if all are used.

    Raises:
        DataError: If labels have another shape.
    """
    if head.positions != "every":
        if labels.ndim != 1:
            raise DataError(f"labels: expected (n,), found {tuple(labels.shape)}")
        return labels, None
    if labels.ndim == 1 and bool((labels == UNLABELLED).all()):
        mask = None if inputs is None else models.padding_mask(inputs)
        if mask is not None and mask.numel() == rows:
            return labels.new_full((rows,), UNLABELLED), mask.flatten().cpu() != 0
        return labels.new_full((rows,), UNLABELLED), None
    named = labels.flatten()
    if len(named) != rows:
        mismatch = f"{rows} rows for labels of shape {tuple(labels.shape)}"
        raise DataError(f"classifier {head.name} gives {mismatch}; a label for each position is needed")
    return named, named != LEFT_OUT


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep freed memory at the end of its heap until the process ends.

    Otherwise the pages of the activations are mapped and cleared again in every batch: extraction of the `cnn` of
    benchmarks/extraction.py takes 1.4 times as long (7.3 s instead of 5.1 s for 10,000 images on one core). Settings of
    the user take precedence.

    Returns:
        Whether the setting was changed; False for other C libraries.
    """
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        n.startswith("MALLOC_") for n in os.environ
    )
    if configured or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_ON_HEAP) and library.mallopt(TRIM_THRESHOLD, RETAINED))


class _Runner:
    """Run batches in parts that fit the device's memory, and record the inputs of the classifier and other layers."""

    def __init__(self, model: nn.Module, head: Head | Backbone, taps: Taps, progress: Progress, first: int) -> None:
        self._model = model
        self._head = head
        self._every = head.positions == "every"
        self._taps = taps
        self._part: int | None = None
        self._scored = False
        if self._every:
            weights, bias = head.parameters(model)
            self._parameters = weights.detach(), None if bias is None else bias.detach()
            self._scored = models.is_scored(head, len(weights))
        self.left_out = 0
        self._progress = progress
        self._samples = first

    def blocks(
        self, batches: Iterable[tuple[Batch, Tensor]], device: torch.device, dtype: torch.dtype
    ) -> Iterator[Block]:
        for batch, labels in batches:
            plain, lengths, places = (batch, None, None) if isinstance(batch, Tensor) else split_lengths(batch)
            inputs = models.on_device(plain, device, dtype)
            if places is None and self._every:
                samples = torch.arange(self._samples, self._samples + len(labels))
                places = torch.stack([samples, torch.zeros_like(samples)], dim=1)
            self._samples += len(labels)
            if lengths is None or isinstance(inputs, Tensor):
                yield from self._in_parts(inputs, labels, places)
            else:
                yield self._without_padding(inputs, labels, lengths, places)

    def _without_padding(
        self, inputs: Mapping[str, Tensor], labels: Tensor, lengths: Tensor, places: Tensor | None
    ) -> Block:
        """Forward samples of one length together and without padding, as if each sample were alone.

        Args:
            inputs: Tensors (n, T, …) by name, padded at the end; T is the largest length.
            labels: Labels (n,), or (n, T) if each position has one.
            lengths: Length of each sample, shape (n,).
            places: Document of each sample and its first position in it, shape (n, 2).
        """
        longest = int(lengths.max())

        def cut(tensor: Tensor, samples: Tensor, length: int) -> Tensor:
            chosen = tensor[samples.to(tensor.device)]
            return chosen[:, :length] if tensor.ndim > 1 and tensor.shape[1] == longest else chosen

        blocks: list[Block] = []
        samples_of_rows: list[Tensor] = []
        for length in lengths.unique().tolist():
            samples = (lengths == length).nonzero()[:, 0]
            part = {name: cut(tensor, samples, length) for name, tensor in inputs.items()}
            part_labels = cut(labels, samples, length)
            forwarded = list(self._in_parts(part, part_labels, None if places is None else places[samples]))
            rows = sum(len(block.labels) for block in forwarded)
            counts = (
                (part_labels != LEFT_OUT).sum(dim=1)
                if part_labels.ndim == 2
                else part_labels.new_full(part_labels.shape, rows // len(part_labels))
            )
            samples_of_rows.append(samples.repeat_interleave(counts))
            blocks += forwarded
        if self._every:
            self.left_out += int((lengths.max() - lengths).sum())
        return _joined(blocks, torch.cat(samples_of_rows).argsort(stable=True))

    def _in_parts(self, inputs: Batch, labels: Tensor, places: Tensor | None) -> Iterator[Block]:
        start = 0
        while start < len(labels):
            stop = len(labels) if self._part is None else min(start + self._part, len(labels))
            part = slice(start, stop)
            try:
                with torch.inference_mode():
                    if stop - start == len(labels):
                        block = self._block(inputs, labels, places)
                    else:
                        of_part = None if places is None else places[part]
                        block = self._block(models.part_of(inputs, part), labels[part], of_part)
            except RuntimeError as error:
                # CUDA has an error class for this, MPS only a message.
                if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                    raise DataError(_refusal(inputs, error)) from error
                self._halve(stop - start)
                continue
            except IndexError as error:
                raise DataError(models.unknown_index(error)) from error
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
                raise DataError(_refusal(inputs, error)) from error
            yield block
            start = stop

    def _halve(self, size: int) -> None:
        if size == 1:
            raise DataError("not enough memory on the device for a single sample; try `device='cpu'`") from None
        self._part = size // 2
        torch.cuda.empty_cache()
        self._progress.message(f"out of memory: continuing with batches of {self._part} samples")

    def _block(self, inputs: Batch, labels: Tensor, places: Tensor | None) -> Block:
        head, taps, logits = self._head, self._taps, None
        with taps.tapping(self._model, inputs) if taps.layers else nullcontext({}) as recorded:
            if self._scored and isinstance(head, Head) and head.ends:
                features = models.rows_entering(self._model, head.name, inputs)
            else:
                rows = head.tapped(self._model, inputs)
                features, logits = rows.features, rows.logits
        layers = taps.rows_in(recorded, len(features)) if taps.layers else {}
        documents, positions = self._documents(places, len(features))
        used, mask = self._used_rows(len(features), labels, inputs, features.device)
        layers = taps.of_samples(layers, used, mask) if layers else {}
        if mask is not None:
            features, logits = features[mask], None if logits is None else logits[mask]
            documents = None if documents is None else documents[mask.cpu()]
            positions = None if positions is None else positions[mask.cpu()]
        scores = logits if logits is not None and logits.shape[1] else None
        if self._scored:
            known = used.to(features.device)
            scores = score_rows(features, known, self._parameters) if logits is None else score_logits(logits, known)
        return Block(features, used, scores, layers, documents, positions)

    def _documents(self, places: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """Return document and position (m,) of rows of the documents and first positions (n, 2) of their samples."""
        if places is None or not self._every:
            return None if places is None else places[:, 0], None
        each = rows // len(places)
        positions = (places[:, 1:] + torch.arange(each)).flatten()
        return places[:, 0].repeat_interleave(each), positions

    def _used_rows(
        self, rows: int, labels: Tensor, inputs: Batch, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return labels of the used rows and a mask of them; count the others."""
        named, mask = labels_of_rows(self._head, rows, labels, inputs)
        if mask is None:
            return named, None
        self.left_out += int((~mask).sum())
        return named[mask], mask.to(device)


def _refusal(inputs: Batch, error: Exception) -> str:
    return (
        f"the model does not run on a batch of {models.samples_in(inputs)} samples of shape "
        f"{models.described(inputs)} ({last_line(error)}){models.precision_hint(error)}"
    )


def _on_cpu(blocks: Iterable[Block]) -> Iterator[Block]:
    """Copy blocks to the CPU; a copy from CUDA overlaps the next forward pass."""
    waiting: tuple[Block, torch.cuda.Event] | None = None
    for block in blocks:
        device = block.features.device
        if device.type == "cpu":
            yield block
            continue
        if device.type != "cuda":
            yield Block.from_tensors({name: tensor.cpu() for name, tensor in block.to_tensors().items()})
            continue
        copied = Block.from_tensors({name: _pinned_copy(tensor) for name, tensor in block.to_tensors().items()})
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = copied, event
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]


def _pinned_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


def _joined(blocks: Sequence[Block], order: Tensor) -> Block:
    """Return the rows of several blocks as one; row i is row order[i] of all of them."""
    parts = [block.to_tensors() for block in blocks]
    return Block.from_tensors(
        {name: torch.cat([part[name] for part in parts])[order.to(first.device)] for name, first in parts[0].items()}
    )
