"""Run forward passes that yield the classifier's inputs and outputs in blocks, while the next batch is prepared."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ckpt_probe.data import LEFT_OUT, UNLABELLED, Split, ready_batches, split_lengths
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.extraction.allocation import keep_freed_memory
from ckpt_probe.extraction.lengths import equal_lengths, rows_of_samples
from ckpt_probe.extraction.scoring import is_scored, parameters_of, score_logits, score_rows
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.models import Backbone, Batch, Head, Taps, evaluating, on_device, padding_mask, part_of, unknown_index
from ckpt_probe.moments.quality import Scored
from ckpt_probe.progress import NullProgress, Progress, Task


@dataclass(frozen=True)
class Block:
    """A block of rows on the CPU.

    Attributes:
        features: Inputs of the classifier, shape (n, D).
        labels: Class indices, shape (n,); −1 for rows without a label.
        logits: Outputs of the classifier, shape (n, C); (n, 0) without a classifier or with `scored`.
        scored: Prediction and loss of each row in place of logits.
        layers: Rows of other layers by name, shape (n, D) each.
    """

    features: Tensor
    labels: Tensor
    logits: Tensor
    scored: Scored | None = None
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, blocks: Sequence["Block"], order: Tensor) -> "Block":
        """Return the rows of several blocks as one, row i of it row order[i] of all of theirs."""

        def join(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(parts))[order.to(parts[0].device)]

        scored = None
        if all(block.scored is not None for block in blocks):
            pairs = [(block.scored.prediction, block.scored.loss) for block in blocks if block.scored is not None]
            predictions, losses = zip(*pairs, strict=True)
            scored = Scored(join([as_tensor(part, "predictions") for part in predictions]), join(losses))
        layers = {layer: join([block.layers[layer] for block in blocks]) for layer in blocks[0].layers}
        features, labels, logits = (
            join([getattr(block, name) for block in blocks]) for name in ("features", "labels", "logits")
        )
        return cls(features, labels, logits, scored, layers)

    @property
    def scores(self) -> Tensor | Scored | None:
        """Logits, or prediction and loss of each row, or None."""
        return self.scored or (self.logits if self.logits.shape[1] else None)


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
        DataError: If the classifier's input is not one row per sample, or as in `Taps.tapped`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    # In this order float64 tensors, which MPS does not support, are never moved to it.
    model.to(dtype=dtype).to(device=device).eval()
    within = {"start": start, "stop": stop}
    with ready_batches(split, batch_size, limit, **within, pinned=device.type == "cuda") as batches:
        yield from forward_batches(
            model, head, batches, device=device, dtype=dtype, taps=taps, progress=progress or NullProgress(), bar=bar
        )


def forward_batches(
    model: nn.Module,
    head: Head | Backbone,
    batches: Iterable[tuple[Batch, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    taps: Taps | None = None,
    progress: Progress | None = None,
    bar: Task | None = None,
) -> Iterator[Block]:
    """Run an unchanged model over batches of inputs (n, …) and labels (n,).

    Only floating-point inputs are cast, to `dtype`. If every position of a sample is a row, such as the tokens of a
    text, labels have shape (n, positions), rows labelled −100 are left out, and with `is_scored` never all logits are
    in memory. Samples with known lengths are forwarded without padding, so that they do not depend on each other.
    Memory errors of the device are handled as in `forward_blocks`.

    Args:
        model: Model.
        head: Classifier of the model.
        batches: Batches of inputs and labels.
        device: Device of the model.
        dtype: Precision of the model.
        taps: Layers whose rows are returned beside the classifier's input.
        progress: Where messages go.
        bar: Progress bar, advanced by rows.

    Raises:
        DataError: As in `forward_blocks`.
    """
    runner = _Runner(model, head, taps or Taps(), progress or NullProgress())
    waiting: list[_Copy] = []
    for batch, labels in batches:
        inputs, lengths = split_lengths(batch)
        for block in runner.run(on_device(inputs, device, dtype), labels, lengths):
            # One block waits, so that its copy from the device overlaps the next forward pass.
            waiting.append(_Copy(block))
            if len(waiting) > 1:
                yield _finished(waiting.pop(0), bar)
    while waiting:
        yield _finished(waiting.pop(0), bar)
    if runner.left_out:
        message = f"{runner.left_out:,} positions are padding, or labelled {LEFT_OUT}, and left out"
        (progress or NullProgress()).message(message)


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
        mask = None if inputs is None else padding_mask(inputs)
        if mask is not None and mask.numel() == rows:
            return labels.new_full((rows,), UNLABELLED), mask.flatten().cpu() != 0
        return labels.new_full((rows,), UNLABELLED), None
    named = labels.flatten()
    if len(named) != rows:
        mismatch = f"{rows} rows for labels of shape {tuple(labels.shape)}"
        raise DataError(f"classifier {head.name} gives {mismatch}; a label for each position is needed")
    return named, named != LEFT_OUT


@contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[torch.dtype]:
    """Move a caller's model to a device and into evaluation mode for the duration of the `with`.

    At the end, also after an error, the training mode of every module and the device are restored.

    Yields:
        Dtype of the first floating-point parameter, which is not changed.

    Raises:
        UsageError: If the model is spread over several devices, or is float64 and the device is MPS.
    """
    tensors = [*model.parameters(), *model.buffers()]
    homes = list(dict.fromkeys(tensor.device for tensor in tensors))
    if len(homes) > 1:
        raise UsageError(f"the model is spread over {listed([str(home) for home in homes])}; move it to one device")
    kinds = list(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point()))
    if device.type == "mps" and torch.float64 in kinds:
        raise UsageError(
            'the model is float64, which MPS does not support; pass device="cpu", or convert it to float32'
        )
    try:
        model.to(device)
        with evaluating(model):
            yield kinds[0] if kinds else torch.float32
    finally:
        if homes:
            model.to(homes[0])


class _Runner:
    """Run batches in parts that fit the device's memory, and record the inputs of the classifier and other layers."""

    def __init__(self, model: nn.Module, head: Head | Backbone, taps: Taps, progress: Progress) -> None:
        self._model = model
        self._head = head
        self._taps = taps
        self._part: int | None = None
        self._parameters = parameters_of(head, model)
        self._scored = is_scored(head, len(self._parameters[0]))
        self.left_out = 0
        self._progress = progress

    def run(self, inputs: Batch, labels: Tensor, lengths: Tensor | None = None) -> Iterator[Block]:
        if lengths is None or isinstance(inputs, Tensor):
            yield from self._in_parts(inputs, labels)
            return
        blocks: list[Block] = []
        numbers: list[Tensor] = []
        for samples, part, named in equal_lengths(inputs, labels, lengths):
            forwarded = list(self._in_parts(part, named))
            counts = rows_of_samples(named, sum(len(block.labels) for block in forwarded))
            numbers.append(samples.repeat_interleave(counts))
            blocks += forwarded
        if self._head.positions == "every":
            self.left_out += int((lengths.max() - lengths).sum())
        yield Block.joined(blocks, torch.cat(numbers).argsort(stable=True))

    def _in_parts(self, inputs: Batch, labels: Tensor) -> Iterator[Block]:
        start = 0
        while start < len(labels):
            stop = len(labels) if self._part is None else min(start + self._part, len(labels))
            part = slice(start, stop)
            try:
                with torch.inference_mode():
                    block = self._block(part_of(inputs, part), labels[part])
            except RuntimeError as error:
                # CUDA has an error class for this, MPS only a message.
                if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                    raise
                self._halve(stop - start)
                continue
            except IndexError as error:
                raise DataError(unknown_index(error)) from error
            yield block
            start = stop

    def _halve(self, size: int) -> None:
        if size == 1:
            raise DataError("not enough memory on the device for a single sample; try --device cpu") from None
        self._part = size // 2
        torch.cuda.empty_cache()
        self._progress.message(f"out of memory: continuing with batches of {self._part} samples")

    def _block(self, inputs: Batch, labels: Tensor) -> Block:
        head = self._head
        if self._scored and isinstance(head, Head) and head.ends:
            with self._taps.tapping(self._model, inputs) as calls:
                features = head.entering(self._model, inputs)
            layers = self._taps.rows_in(calls, len(features))
            named, mask = self._used_rows(len(features), labels, inputs, features.device)
            features = features if mask is None else features[mask]
            scored = score_rows(features, named.to(features.device), self._parameters)
            return Block(features, named, features[:, :0], scored, self._taps.of_samples(layers, named, mask))
        rows, layers = self._taps.tapped(self._model, head, inputs)
        features, logits = rows.features, rows.logits
        named, mask = self._used_rows(len(features), labels, inputs, features.device)
        layers = self._taps.of_samples(layers, named, mask)
        if mask is not None:
            features, logits = features[mask], logits[mask]
        if not self._scored:
            return Block(features, named, logits, None, layers)
        return Block(features, named, logits[:, :0], score_logits(logits, named.to(features.device)), layers)

    def _used_rows(
        self, rows: int, labels: Tensor, inputs: Batch, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return labels of the used rows and a mask of them; count the others."""
        named, mask = labels_of_rows(self._head, rows, labels, inputs)
        if mask is None:
            return named, None
        self.left_out += int((~mask).sum())
        return named[mask], mask.to(device)


class _Copy:
    """A block that is being copied to the CPU."""

    def __init__(self, block: Block) -> None:
        self._event: torch.cuda.Event | None = None
        if block.features.device.type != "cuda":
            self._block = _on_cpu(block, lambda tensor: tensor.cpu())
            return
        self._block = _on_cpu(block, _pinned_copy)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(block.features.device))

    def wait(self) -> Block:
        if self._event is not None:
            self._event.synchronize()
        return self._block


def _on_cpu(block: Block, copy: Callable[[Tensor], Tensor]) -> Block:
    scored = block.scored
    if scored is not None:
        scored = Scored(copy(as_tensor(scored.prediction, "predictions")), copy(as_tensor(scored.loss, "losses")))
    layers = {layer: copy(rows) for layer, rows in block.layers.items()}
    return Block(copy(block.features), block.labels, copy(block.logits), scored, layers)


def _pinned_copy(tensor: Tensor) -> Tensor:
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


def _finished(copy: _Copy, bar: Task | None) -> Block:
    block = copy.wait()
    if bar is not None:
        bar.advance(len(block.labels))
    return block
