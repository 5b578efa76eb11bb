"""A model's classifier, listened to while somebody else runs the model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.models import find_classifier

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Tap:
    """Features and logits of every forward pass between `start` and `stop`, and the classifier's weights.

    Where no classifier is named it is found in the first pass, by running two of its samples once more. Hooks are set
    by `start` and removed by `stop`, so that training runs without any. Raises UsageError where the name is of no
    linear layer.
    """

    def __init__(self, model: nn.Module, classifier: str | None = None) -> None:
        inner = getattr(model, "_orig_mod", model)
        self.model: nn.Module = inner.module if isinstance(inner, DistributedDataParallel) else inner
        self._layer = None if classifier is None else _linear(self.model, classifier)
        self._hooks: list[RemovableHandle] = []
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._outermost: list[str] = []
        self._depth = 0

    def start(self) -> None:
        """Listen."""
        self.stop()
        if self._layer is None:
            self._search()
        else:
            self._listen(self._layer)

    def stop(self) -> None:
        """Listen no more, and forget what was heard."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen, self._outermost, self._depth = [], [], [], 0

    def take(self, samples: int) -> tuple[Tensor, Tensor]:
        """Features (n, D) and logits (n, C) of the pass over `samples` samples since the last call, copies.

        Raises DataError where the classifier ran not once, or its input is not one row a sample; UsageError where it
        was to be found, but several modules were run by themselves, so that none of them is the whole model.
        """
        seen, outermost = self._seen, self._outermost
        self._seen, self._outermost = [], []
        if len(outermost) > 1:
            self._layer = None
            told = f"an evaluation step runs {listed(outermost)} one after the other"
            raise UsageError(f"{told}, and none of them is the whole model: name the last linear layer (classifier=…)")
        if len(seen) != 1:
            compiled = "; the code of torch.compile passes hooks by: run the module that it was given" * (not seen)
            raise DataError(f"the classifier ran {len(seen)} times for one batch of labels, not once{compiled}")
        if outermost:
            self.start()  # found, and heard to be the whole: what it was looked for with is no longer needed
        features, logits = seen[0]
        if features.ndim != 2 or len(features) != samples:
            raise DataError(
                f"the classifier takes {tuple(features.shape)} for {samples} labels; one row of features a sample is "
                "needed"
            )
        return features, logits

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weights (C, D) and bias (C,) as they are now, float64 on the CPU. Raises DataError before a first pass."""
        if self._layer is None:
            raise DataError("the evaluation ran no batch: the model's classifier is not known yet")
        bias: Any = self._layer.bias
        return self._layer.weight.detach().cpu().double(), None if bias is None else bias.detach().cpu().double()

    def _search(self) -> None:
        # Who runs the model may run the whole of it, or a part that does the work and is the model in truth.
        for name, module in self.model.named_modules():
            before = module.register_forward_pre_hook(self._entering(name), with_kwargs=True)
            self._hooks += [before, module.register_forward_hook(self._leaving, always_call=True)]

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0:
                self._outermost.append(name or "the model")
                if self._layer is None:
                    self._depth += 1  # what runs while it is found is no call of the evaluation
                    self._layer = _found(module, args, kwargs)
                    self._depth -= 1
                    self._listen(self._layer)
            self._depth += 1

        return enter

    def _leaving(self, *_: Any) -> None:
        self._depth -= 1

    def _listen(self, layer: nn.Linear) -> None:
        self._hooks.append(layer.register_forward_hook(self._hear))

    def _hear(self, _layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # A row may be a view of all that a transformer computes, and memory is used again by whoever runs the model.
        self._seen.append((args[0].detach().clone(), output.detach().clone()))


class _Called(nn.Module):
    """A model that is called with the same arguments whatever it is given."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.training = model.training

    def forward(self, _inputs: Tensor) -> Any:
        args, kwargs = self.call
        return self.model(*args, **kwargs)


def _found(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Linear:
    """The classifier, found by running two samples of a call once more."""
    if model.training:
        raise UsageError("the model is in training mode, where dropout and batch norm change it: call model.eval()")
    call = tuple(map(_two, args)), {name: _two(value) for name, value in kwargs.items()}
    tensors = [value for value in (*call[0], *call[1].values()) if isinstance(value, Tensor)]
    name = find_classifier(_Called(model, call), tensors[0] if tensors else torch.empty(0))
    return _linear(model, name.removeprefix("model."))


def _two(value: Any) -> Any:
    return value[:2] if isinstance(value, Tensor) and value.ndim else value


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linears = {found: module for found, module in model.named_modules() if isinstance(module, nn.Linear)}
    if name not in linears:
        raise UsageError(f"classifier {name}: no linear layer of that name; there are: {listed(list(linears))}")
    return linears[name]
