"""Record the rows of a model's head by hooks while other code runs the model."""

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, listed
from ckpt_probe.models import Head, Part, Rows, find_head, logits_of
from ckpt_probe.models.calling import Call

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Tap:
    """Recorder of the head's rows in every forward pass between `start` and `stop`.

    If no classifier is named, it is found in the first pass by running two of its samples again. `start` registers
    hooks and `stop` removes them, so that training runs without hooks. Between two batches `pause` only makes the hooks
    inactive, which is faster.

    Args:
        model: Model.
        classifier: Name of the last linear layer; found if None.

    Attributes:
        model: Model, without the wrappers of torch.compile and of distributed training.
        named: Whether the caller has named the classifier.

    Raises:
        UsageError: If there is no linear layer of that name.
    """

    def __init__(self, model: nn.Module, classifier: str | None = None) -> None:
        inner = getattr(model, "_orig_mod", model)
        self.model: nn.Module = inner.module if isinstance(inner, DistributedDataParallel) else inner
        self.named = classifier is not None
        self._head = None if classifier is None else _named(self.model, classifier)
        self._root = self.model
        self._hooks = ExitStack()
        self._calls: Mapping[str, list[Call]] = {}
        self._output: Any = None
        self._outermost: list[str] = []
        self._depth = 0
        self._error: CkptProbeError | None = None
        self._listens = self._hooked = False

    def renew(self) -> None:
        """Prepare for a new evaluation: discard a head with a scale that was derived from the weights."""
        if self._head is not None and not self._head.settled:
            self.stop()
            self._head = None

    def start(self) -> None:
        """Start recording."""
        if not self._hooked or self._head is None:
            self.stop()
            (self._search if self._head is None else self._listen)()
        self._forget()
        self._listens = True

    def stop(self) -> None:
        """Remove the hooks and discard recorded passes."""
        self._hooks.close()
        self._forget()
        self._calls, self._listens, self._hooked = {}, False, False

    def pause(self) -> None:
        """Discard recorded passes and record nothing until `start`."""
        if self._hooked:
            self._forget()
            self._listens = False
        else:
            self.stop()

    def _forget(self) -> None:
        for recorded in self._calls.values():
            recorded.clear()
        self._output, self._outermost, self._depth, self._error = None, [], 0, None

    @property
    def pending(self) -> bool:
        """Return whether there was a forward pass since the last `take`."""
        return bool(self._outermost) or any(self._calls.values())

    def take(self, samples: int, *, positions: bool = False) -> tuple[Head, Rows]:
        """Return the head, and copies of its rows in the forward pass since the last call.

        Args:
            samples: Number of samples in the batch.
            positions: Whether every position of a sample is a row, for a named head, for which this is unknown.

        Raises:
            DataError: If the head did not run exactly once, or over another number of samples.
            UsageError: If the head was not found, or several modules ran separately, so that none is the model.
        """
        outermost, error, output = self._outermost, self._error, self._output
        calls = {name: list(recorded) for name, recorded in self._calls.items()}
        self._forget()
        if error is not None or len(outermost) > 1:
            self._head = None
            problem = f"an evaluation step runs {listed(outermost)} one after the other, and none is the whole model"
            advice = "name the last linear layer (classifier=…)"
            if len(set(outermost)) == 1:
                problem = f"{outermost[0]} ran {len(outermost)} times before the labels of a batch came"
                advice = "give the labels after each forward pass, and run nothing else in an evaluation"
            raise error or UsageError(f"{problem}: {advice}")
        if self._head is None or not all(calls.values()):
            compiled = "; the code of torch.compile passes hooks by: run the module that it was given"
            raise DataError(f"the model's classifier did not run for a batch of {samples} labels{compiled}")
        if (times := max(map(len, calls.values()))) > 1:
            problem = f"the model's classifier ran {times} times for the labels of one batch"
            raise DataError(f"{problem}: give the labels after each forward pass, in which it runs once")
        head = (
            replace(self._head, parts=(replace(self._head.parts[0], positions="every"),)) if positions else self._head
        )
        rows = head.rows(self._root, calls, output, samples)
        if outermost:
            self.start()  # the head is known now: replace the hooks of the search
        # Copies: a row may be a view of a much larger activation, whose memory may be reused.
        return head, Rows(rows.features.detach().clone(), rows.logits.detach().clone())

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return copies of the current weights (C, D) and bias (C,), float64 on the CPU.

        Raises:
            DataError: If there has been no forward pass.
        """
        if self._head is None:
            raise DataError("the evaluation ran no batch: the model's classifier is not known yet")
        weights, bias = self._head.parameters(self._root)
        return _copied(weights), None if bias is None else _copied(bias)

    def _search(self) -> None:
        # A caller may run the model itself, or only a submodule that computes the logits.
        for name, module in self.model.named_modules():
            before = module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            after = module.register_forward_hook(self._leaving, always_call=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0:
            self._outermost.append(name or "the model")
            if self._head is None and self._error is None:
                self._depth += 1  # forward passes of the search are not part of the evaluation
                try:
                    self._root, self._head = _find_by_running(module, (args, kwargs))
                    self._listen()
                except CkptProbeError as error:
                    self._error = error
                self._depth -= 1
        self._depth += 1

    def _leaving(self, *_: Any) -> None:
        self._depth -= 1

    def _listen(self) -> None:
        assert self._head is not None
        self._calls = self._hooks.enter_context(self._head.tapping(self._root, lambda: self._listens))
        # After a search its hooks are still registered, and `take` registers these again.
        self._hooked = not self._outermost
        if not self.named:
            model = self._root.model if isinstance(self._root, _Called) else self._root
            self._hooks.callback(model.register_forward_hook(self._returned).remove)

    def _returned(self, _model: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self._listens:
            self._output = output


class _Called(nn.Module):
    """A model that ignores its input and is called with stored arguments, since `find_head` passes one tensor only."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.training = model.training

    def forward(self, _inputs: Tensor) -> Any:
        args, kwargs = self.arguments
        return self.model(*args, **kwargs)


def _named(model: nn.Module, name: str) -> Head:
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name not in linears:
        raise UsageError(f"classifier {name}: no linear layer of that name; there are: {listed(list(linears))}")
    return Head((Part(name, linears[name].in_features),))


def _find_by_running(model: nn.Module, arguments: Arguments) -> tuple[nn.Module, Head]:
    """Find the head of a model by running two samples of a call again.

    Args:
        model: Model.
        arguments: Positional and keyword arguments of the call.

    Returns:
        The module to which the names of the head's layers refer, and the head.

    Raises:
        UsageError: If the model is in training mode or has no head.
        DataError: If its output is not finite.
    """
    if model.training:
        raise UsageError("the model is in training mode, where dropout and batch norm change it: call model.eval()")
    args, kwargs = arguments
    two = tuple(map(_first_two, args)), {name: _first_two(value) for name, value in kwargs.items()}
    inputs = _tensors([*two[0], *two[1].values()])
    if not inputs:
        problem = "the model takes neither a tensor nor a dictionary of tensors to find its last linear layer by"
        raise UsageError(f"{problem}: name it (classifier=…)")
    called = _Called(model, two)
    try:
        head = find_head(called, inputs[0])
    except DataError as error:
        with torch.no_grad():
            if not bool(logits_of(called(torch.empty(0))).isfinite().all()):
                raise DataError("the model's output has NaN or infinity") from error
        raise UsageError(f"{error}, here classifier=NAME") from error
    called.arguments = (), {}
    return called, head


def _first_two(value: Any) -> Any:
    if isinstance(value, MutableMapping):
        first = copy(value)  # of its class: a model may read attributes of a BatchEncoding
        first.update({name: _first_two(entry) for name, entry in value.items()})
        return first
    return value[:2] if isinstance(value, Tensor) and value.ndim else value


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    nested = [_tensors([*value.values()]) if isinstance(value, Mapping) else [value] for value in values]
    return [value for part in nested for value in part if isinstance(value, Tensor) and value.ndim]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64, copy=True)
