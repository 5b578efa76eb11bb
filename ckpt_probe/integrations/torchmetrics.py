"""Provide the record of metrics as a `torchmetrics.Metric`."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ckpt_probe.analysis import FirstPass, Settings, compute_from_moments
from ckpt_probe.analysis.records import metric_names
from ckpt_probe.data import LEFT_OUT
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.integrations.evaluation import DURING_TRAINING, checked_settings, merge_share, share_of
from ckpt_probe.integrations.ranks import rank_and_size
from ckpt_probe.keywords import whole_number
from ckpt_probe.metrics.rows import as_labels, as_tensor
from ckpt_probe.moments.quality import Gathering, LinearHead
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = require_extra("torchmetrics", "torchmetrics").Metric

STATE = "_gathering"


class RecordMetric(Metric):
    """Accumulate features and labels in `update`, and return the values of a record in `compute`.

        metrics = MetricCollection({"acc": MulticlassAccuracy(10), "collapse": RecordMetric(model.fc)})
        metrics.update(preds=logits, target=labels, features=features)
        metrics.compute()["class.mir"]

    Only class moments are stored, which merge exactly: in a distributed run the values are those of all samples
    together. Values that need the features a second time (NC4, the accuracy of the nearest class mean and the centred
    variants) are absent.

    Args:
        classifier: Last linear layer, whose weights at the last batch are used; without it, values that need them are
            absent.
        only: Metrics, families of metrics or patterns to compute, such as "nc,class"; the usual ones if None.
        num_classes: Number of classes; that of the classifier, else the highest label plus 1, if None.
        settings: Settings of the record, in place of `only`.
        process_group: Processes whose samples are merged; all if None.
        sync_on_compute: Whether `compute` merges the samples of all processes.
        dist_sync_on_step: Whether `forward` does.

    Raises:
        UsageError: If `classifier` is not a linear layer, `only` names an unknown metric, or `settings` are added to
            `only`.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        classifier: nn.Module | None = None,
        *,
        only: str | Iterable[str] | None = None,
        num_classes: int | None = None,
        settings: Settings | None = None,
        process_group: Any = None,
        sync_on_compute: bool = True,
        dist_sync_on_step: bool = False,
    ) -> None:
        super().__init__(
            process_group=process_group, sync_on_compute=sync_on_compute, dist_sync_on_step=dist_sync_on_step
        )
        if classifier is not None and not isinstance(getattr(classifier, "weight", None), Tensor):
            raise UsageError(f"`classifier`: expected a linear layer, found a {type(classifier).__name__}")
        if only is not None and settings is not None:
            raise UsageError("`only` and `settings` exclude each other: pass Settings(only=…)")
        self._classifier = _Reference(classifier)
        self._settings = checked_settings(settings) if settings is not None else replace(DURING_TRAINING, only=only)
        self._classes = None if num_classes is None else whole_number("num_classes", num_classes, 2)
        self._gathering: Gathering | None = None
        self._held: tuple[Any, tuple[Tensor | None, Tensor | None]] | None = None

    def update(self, features: Tensor, target: Tensor, preds: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: Inputs of the classifier, shape (n, D), or (n, positions, D) if every position is a row.
            target: Classes, shape (n,) or (n, positions); rows of class −100 are left out.
            preds: Logits, shape (n, C) or (n, positions, C); computed from features and classifier if None.

        Raises:
            DataError: If a value is not finite, a label is outside 0 … C−1, or shapes do not match.
        """
        features, target = as_tensor(features, "features"), as_labels(target, "target")
        preds = None if preds is None else as_tensor(preds, "preds")
        if features.shape[:-1] != target.shape or (preds is not None and preds.shape[:-1] != target.shape):
            shapes = [str(tuple(tensor.shape)) for tensor in (features, target, preds) if tensor is not None]
            raise DataError(f"features, target and preds: expected (n, D), (n,) and (n, C), found {', '.join(shapes)}")
        labels = target.detach().flatten()
        used = labels != LEFT_OUT
        rows, labels = features.detach().flatten(0, -2)[used], labels[used]
        logits = None if preds is None else preds.detach().flatten(0, -2)[used].float()
        self._hold()
        if self._gathering is None:
            self._gathering = self._empty()
        # Copies, as a row may be a view of memory that is used again.
        self._gathering.add(rows.clone(), labels.to(rows.device), None if logits is None else logits.clone())

    def compute(self) -> dict[str, Tensor]:
        """Return the values of the record by name, without undefined ones.

        Raises:
            DataError: If there was no sample.
        """
        gathering = self._gathering or self._empty()
        gathering.finish()
        weights, bias = self._classifier_parameters()
        first = FirstPass(gathering.moments, gathering.quality)
        record = compute_from_moments(first, weights, bias, settings=self._settings).record
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        names = [name for name in metric_names([record], errors=True) if record[name] is not None]
        return {name: torch.tensor(record[name], dtype=dtype, device=self.device) for name in names}

    def reset(self) -> None:
        """Remove all samples."""
        super().reset()
        self._gathering = self._held = None

    @property
    def metric_state(self) -> dict[str, Any]:
        """State that another metric merges."""
        return {STATE: self._gathering}

    def _classifier_parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the weights and bias of the last batch, or the current ones before the first."""
        if self._held is not None:
            return self._held[1]
        classifier = self._classifier.module
        if classifier is None:
            return None, None
        weights, bias = classifier.weight, getattr(classifier, "bias", None)
        return weights.detach().flatten(1), bias if bias is None else bias.detach()

    def _hold(self) -> None:
        """Copy weights and bias: at the end a callback that averages weights may have put others into the model."""
        before, self._held = self._held, None
        tensors = self._classifier_parameters()
        version = [None if tensor is None else tensor._version for tensor in tensors]
        if before is None or before[0] != version:
            weights, bias = (None if tensor is None else tensor.clone() for tensor in tensors)
            before = version, (weights, bias)
        self._held = before

    def _empty(self) -> Gathering:
        weights, bias = self._classifier_parameters()
        classes = self._classes if weights is None else len(weights)
        rank, ranks = rank_and_size()
        return Gathering(self._settings.moments(classes), LinearHead.of(weights, bias), rank=rank, ranks=ranks)

    # torchmetrics copies, restores and merges states through the methods below. A state is never changed after it was
    # copied, since `reset` and `_sync_dist` replace it, so that a reference to it serves as the copy.

    def _copy_state_dict(self) -> dict[str, Any]:
        return self.metric_state

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        if incoming_state[STATE] is not None:
            self._merge([share_of(incoming_state[STATE]), share_of(self._gathering)])

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        group = process_group or self.process_group
        shares: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(shares, share_of(self._gathering), group=group)
        self._merge(shares)

    def _merge(self, shares: Iterable[Any]) -> None:
        self._gathering = self._empty()
        for share in filter(None, shares):
            merge_share(self._gathering, share, self._settings)


class _Reference:
    """Reference to a module that is not part of the metric: copies of the metric refer to the same module."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module: Any = module

    def __deepcopy__(self, memo: Any) -> "_Reference":
        return self
