"""The relation of a model's output to the outputs of its layers, from runs with random layer outputs.

Random numbers in place of the layers' own outputs give as many equations as are needed: one sample with one logit, or
weights that are all zero, would fit any layer and any scale.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.errors import CkptProbeError
from ckpt_probe.models.calling import Batch, first_tensor, forward_once, results_of, samples_in
from ckpt_probe.models.head import CONVOLUTIONS, Head, Part, Positions, by_position

EQUATIONS = 64
"""Minimum number of output values that are compared; one pass gives samples · classes of them."""

SATURATING = 1e6
"""Factor of random numbers that saturates a cap on logits."""

Drawn = dict[str, tuple[nn.Module, Tensor]]
"""Layers that ran once for n samples, and the random numbers (n, …) that replaced their outputs, by name."""


@dataclass(frozen=True)
class _Column:
    """A possible contribution of a layer to the logits.

    Args:
        part: The layer.
        rectified: Whether negative numbers are replaced by zero first.
        values: The contribution, shape (n, C).
    """

    part: Part
    rectified: bool
    values: Tensor


def relation_to(model: nn.Module, inputs: Batch, names: Sequence[str], index: int, result: Tensor) -> Head | None:
    """Find how a result of the model depends on the outputs of some layers.

    Each pass replaces every output of these layers with the width of `result` by new random numbers, so that the
    relation holds for any weights, including zeros. The scales of terms are those of the model's current weights.

    Args:
        model: The model.
        inputs: Inputs of a batch.
        names: Names of the layers.
        index: Index of the result among `results_of`.
        result: The result, shape (n, C) or (n, …, C).

    Returns:
        The head, whose parts' kinds and widths are not known yet, and whose `why` has {what} for the model's output;
        None if there is no known relation.
    """
    samples, runs = samples_in(inputs), partial(_run_replaced, model, inputs, names, index, _widths(result))
    passes: list[tuple[list[_Column], Tensor]] = []
    try:
        cap = _cap_of(runs)
        size = 1.0 if cap is None else min(1.0, cap)
        for number in range(max(1, min(EQUATIONS, -(-EQUATIONS // max(1, result.numel()))))):
            drawn, output = runs(number, size)
            picked = _picked(drawn, output)
            if picked is not None:
                return picked
            passes.append(_columns(drawn, output, samples))
    except (CkptProbeError, IndexError):
        return None  # the model does not run with random layer outputs
    return _fitted(passes, cap) if passes[0][0] else None


def _cap_of(runs: Callable[[int, float], tuple[Drawn, Tensor]]) -> float | None:
    """Return c if the model's output is c · tanh(logits / c), None if large logits give large numbers."""
    # Both signs: a sigmoid gives 1 for one of them, but 0 for the other.
    largest = torch.stack([runs(0, size)[1].abs() for size in (SATURATING, -SATURATING)])
    cap = float(largest.max())
    return cap if cap > 0 and bool(((largest - cap).abs() <= 1e-3 * cap).all()) else None


def _run_replaced(
    model: nn.Module, inputs: Batch, names: Sequence[str], index: int, widths: set[int], seed: int, size: float
) -> tuple[Drawn, Tensor]:
    """Run a model with random numbers in place of the outputs of layers, and return these and one of its results."""
    drawn: dict[str, list[tuple[nn.Module, Tensor]]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as hooks:
        for name in names:
            draw = _drawer(drawn[name], widths, generator, size)
            hooks.enter_context(model.get_submodule(name).register_forward_hook(draw, with_kwargs=True))
        result = results_of(forward_once(model, inputs))[index]
    samples = samples_in(inputs)
    once = {name: calls[0] for name, calls in drawn.items() if len(calls) == 1}
    return {name: call for name, call in once.items() if len(call[1]) == samples}, result


def _drawer(
    drawn: list[tuple[nn.Module, Tensor]], widths: set[int], generator: torch.Generator, size: float
) -> Callable[..., Tensor | None]:
    def draw(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor | None:
        if first_tensor(arguments, named) is None or not isinstance(output, Tensor) or output.ndim < 2:
            return None
        width = output.shape[1] if isinstance(module, CONVOLUTIONS) else output.shape[-1]
        if width not in widths or not output.is_floating_point():
            return None
        values = (size * torch.randn(output.shape, generator=generator)).to(output.device, output.dtype)
        drawn.append((module, values))
        # The next layer may change its input in place.
        return values.clone()

    return draw


def _widths(result: Tensor) -> set[int]:
    """Return possible numbers of classes of a result of shape (n,), (n, C), (n, …, C) or (n, C, …)."""
    return {1} if result.ndim == 1 else {int(result.shape[1]), int(result.shape[-1])}


def _picked(drawn: Drawn, result: Tensor) -> Head | None:
    """Return the relation to a layer if the result, shape (n, C), is one of its rows for each sample."""
    for name, call in reversed(drawn.items()):
        rows = by_position(*call)
        if rows.shape[1] > 1 and result.shape == (len(rows), rows.shape[-1]):
            same = (rows == result.to(rows.dtype)[:, None]).all(dim=-1)
            if bool(same.any(dim=1).all()):
                why = "its output at one position of each sample, such as the last token, is {what}"
                return Head((Part(name, positions="chosen"),), why=why)
    return None


def _columns(drawn: Drawn, result: Tensor, samples: int) -> tuple[list[_Column], Tensor]:
    """Return possible contributions of each layer to the logits, and the result, as rows of shape (m, C)."""
    rows = {name: by_position(*call) for name, call in drawn.items()}
    every = [name for name in rows if drawn[name][1].shape == result.shape and rows[name].shape[1] > 1]
    if every:
        columns = [_Column(Part(name, positions="every"), False, rows[name].flatten(0, 1)) for name in every]
        return columns, by_position(drawn[every[-1]][0], result).flatten(0, 1)
    columns = []
    for name, laid in rows.items():
        if samples * laid.shape[-1] == result.numel():
            positions: Positions = "one" if laid.shape[1] == 1 else "mean"
            part = Part(name, positions=positions)
            columns += [_Column(part, False, laid.mean(dim=1)), _Column(part, True, laid.relu().mean(dim=1))]
    return columns, result.reshape(samples, -1)


def _fitted(passes: Sequence[tuple[list[_Column], Tensor]], cap: float | None) -> Head | None:
    columns = passes[0][0]
    names = [column.part.layer for column in columns]
    if any([column.part.layer for column in layer_columns] != names for layer_columns, _ in passes):
        return None
    result = torch.cat([layer_columns for _, layer_columns in passes]).cpu().double()
    tolerance = 0.02 if torch.finfo(passes[0][1].dtype).bits < 32 else 1e-4
    values = [
        torch.cat([layer_columns[i].values for layer_columns, _ in passes]).cpu().double() for i in range(len(columns))
    ]
    # Layers that ran last are likelier; more columns than half the numbers would fit anything.
    first = max(0, len(columns) - result.numel() // 2)
    columns, values = columns[first:], values[first:]
    for reading, undone, centred in _undone(result, tolerance, cap):
        wanted = _centred(undone) if centred else undone
        stacked = torch.stack([(_centred(each) if centred else each).flatten() for each in values], dim=1)
        scales = _scales(stacked, wanted.flatten(), tolerance)
        if scales is not None:
            return _as_relation(
                [(column, scale) for column, scale in zip(columns, scales, strict=True) if scale], reading
            )
    return None


def _undone(result: Tensor, tolerance: float, cap: float | None) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield possible readings of a result: name, logits, and whether a constant per row is undetermined.

    Args:
        result: The result, shape (m, C).
        tolerance: Relative tolerance.
        cap: Maximum of all results, see `_cap_of`; if set, the first reading is "softcapped".
    """
    if cap is not None:
        # A sigmoid of a single logit may look like a cap too.
        yield "softcapped", cap * (result / cap).atanh(), False
    yield "", result, False
    if result.shape[1] > 1 and bool((result.logsumexp(dim=1).abs() < 10 * tolerance).all()):
        yield "log-softmax", result, True
    if bool(((result > 0) & (result < 1)).all()):
        if result.shape[1] > 1 and bool(((result.sum(dim=1) - 1).abs() < 10 * tolerance).all()):
            yield "softmax", result.log(), True
        yield "sigmoid", result.logit(), False


def _scales(columns: Tensor, wanted: Tensor, tolerance: float) -> list[float] | None:
    """Return non-negative multiples of columns, shape (m, k), whose sum is `wanted`, shape (m,); None if impossible."""
    if not bool(wanted.isfinite().all()) or not bool(wanted.abs().max() > 0):
        return None
    selected = torch.arange(columns.shape[1])
    for _ in range(2):
        solution = torch.linalg.lstsq(columns[:, selected], wanted[:, None], driver="gelsd").solution[:, 0]
        selected = selected[solution > 10 * tolerance * solution.abs().max()]
        if not len(selected):
            return None
    solution = torch.linalg.lstsq(columns[:, selected], wanted[:, None], driver="gelsd").solution[:, 0]
    left = (columns[:, selected] @ solution - wanted).abs().max() / wanted.abs().max()
    if bool(left > 10 * tolerance) or bool((solution <= 0).any()):
        return None
    digits = 2 if tolerance > 1e-3 else 6
    scales = dict(zip(selected.tolist(), (float(f"{scale:.{digits}g}") for scale in solution.tolist()), strict=True))
    return [scales.get(number, 0.0) for number in range(columns.shape[1])]


def _as_relation(scaled_columns: Sequence[tuple[_Column, float]], reading: str) -> Head | None:
    parts = tuple(replace(column.part, scale=scale) for column, scale in scaled_columns)
    if any(column.rectified for column, _ in scaled_columns):
        if len(scaled_columns) > 1 or reading or parts[0].scale != 1:
            return None
        pooled = "the mean over positions of " if parts[0].positions == "mean" else ""
        return Head(parts, "rectified", why=f"{{what}} is {pooled}its output, negative numbers as zero")
    total = " + ".join(_describe(part, alone=len(parts) == 1) for part in parts)
    if len(parts) > 1 and {part.scale for part in parts} == {float(f"{1 / len(parts):.6g}")}:
        total = f"the mean of the outputs of {' and '.join(part.layer for part in parts)}"
    return Head(parts, reading, why=f"{{what}} is {f'the {reading} of ' if reading else ''}{total}")


def _describe(part: Part, *, alone: bool) -> str:
    whose = "its output" if alone else f"the output of {part.layer}"
    where = {"mean": "the mean over positions of ", "every": "at every position "}.get(part.positions, "")
    return f"{where}{whose}" if part.scale == 1 else f"{part.scale:g} · {where}{whose}"


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)
