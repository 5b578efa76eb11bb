"""Provide a probe for Hugging Face's Trainer."""

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import functional as F

from ckpt_probe.analysis import Settings
from ckpt_probe.data import LEFT_OUT
from ckpt_probe.errors import UsageError
from ckpt_probe.integrations.evaluation import Evaluation, checked_settings
from ckpt_probe.integrations.journal import Journal
from ckpt_probe.integrations.ranks import on_first
from ckpt_probe.integrations.tap import Tap
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:  # from the modules themselves: the package would have a type checker read 3,000 more files
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerCallback, TrainerState
else:
    TrainerCallback = require_extra("transformers", "transformers").TrainerCallback


class TrainerProbe(TrainerCallback):
    """Measure the model in every evaluation of a Trainer, without additional forward passes.

        trainer.add_callback(TrainerProbe(trainer))

    The numbers go to the Trainer's log as `eval_class.mir` and so on, which load_best_model_at_end and early stopping
    can use, and to a file of records, one line per evaluation. In a distributed run the samples of all processes are
    one evaluation. An evaluation that cannot be measured, for instance because of NaN, causes a warning and has no
    record.

    Args:
        trainer: The Trainer.
        records: File of records; records.jsonl in the output directory if None.
        classifier: Name of the last linear layer; found by running the model if None.
        split: Name of the evaluation set in the records; sets of a dictionary have their own names.
        every: Smallest number of steps between two records of a set.
        overwrite: Whether to replace the records of an earlier run, which are otherwise an error if training starts at
            step 0; a resumed run retains them up to its step.
        settings: Settings of the records.

    Raises:
        UsageError: If the Trainer uses several GPUs in one process.
    """

    def __init__(
        self,
        trainer: "Trainer",
        records: Path | str | None = None,
        *,
        classifier: str | None = None,
        split: str = "eval",
        every: int = 1,
        overwrite: bool = False,
        settings: Settings | None = None,
    ) -> None:
        if trainer.args.n_gpu > 1:
            raise UsageError(f"{trainer.args.n_gpu} GPUs in one process (DataParallel): start with torchrun, one each")
        self._trainer = trainer
        self._settings = checked_settings(settings)
        self._journal = Journal(records or Path(str(trainer.args.output_dir)) / "records.jsonl")
        self._classifier, self._split, self._every, self._overwrite = classifier, split, every, overwrite
        self._tap: Tap | None = None
        self._evaluation: Evaluation | None = None
        self._unlabelled: list[str] = []
        self._shifts = _predicts_the_next_token(trainer.model)
        # No callback event receives the labels, and a Trainer with label smoothing removes them from the inputs.
        trainer.prediction_step = self._wrap_prediction_step(trainer.prediction_step)  # pyright: ignore[reportAttributeAccessIssue]
        # Nor is there an event for the beginning of an evaluation, or for an error in it.
        trainer.evaluation_loop = self._wrap_evaluation_loop(trainer.evaluation_loop)

    def on_train_begin(self, args: Any, state: "TrainerState", control: Any, **kwargs: Any) -> None:
        """Prepare the file of records for training from the state's step."""
        on_first(lambda: self._journal.begin(state.global_step, overwrite=self._overwrite))

    def on_evaluate(
        self, args: Any, state: "TrainerState", control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Log and store the record of the evaluation that has just ended."""
        evaluation = self._end_evaluation()
        metrics = {} if metrics is None else metrics
        prefix = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        split = prefix.removeprefix("eval_") if prefix != "eval" else self._split
        step = state.global_step
        if evaluation is None:
            return
        if self._unlabelled:
            expected, present = ", ".join(self._trainer.label_names), ", ".join(self._unlabelled)
            raise UsageError(f"the batches of the evaluation have no tensor of labels ({expected}), only: {present}")
        values = self._journal.record(evaluation, f"checkpoint-{step}", step, split, state.epoch, every=self._every)
        for callback in self._trainer.callback_handler.callbacks:
            self._journal.write_events(getattr(callback, "tb_writer", None), step)
        new = {name: value for key, value in values.items() if (name := f"{prefix}_{key}") not in metrics}
        if new:
            metrics.update(new)
            self._trainer.log(dict(new))

    def on_predict(self, args: Any, state: "TrainerState", control: Any, metrics: Any, **kwargs: Any) -> None:
        """Discard the forward passes of `predict`, which are not an evaluation."""
        self._end_evaluation()

    def _end_evaluation(self) -> Evaluation | None:
        if self._tap is not None:
            self._tap.stop()
        evaluation, self._evaluation = self._evaluation, None
        return evaluation

    def _wrap_prediction_step(self, prediction_step: Any) -> Any:
        @functools.wraps(prediction_step)
        def wrapped(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            tap, labels = self._start_evaluation(), self._labels(inputs)
            tap.start()
            try:
                result = prediction_step(model, inputs, *args, **kwargs)
                if labels is not None and self._evaluation is not None:
                    self._evaluation.update(labels, used=self._count_distinct(len(labels)))
            finally:
                tap.pause()
            return result

        return wrapped

    def _wrap_evaluation_loop(self, evaluation_loop: Any) -> Any:
        @functools.wraps(evaluation_loop)
        def loop(*args: Any, **kwargs: Any) -> Any:
            self._end_evaluation()
            try:
                return evaluation_loop(*args, **kwargs)
            except BaseException:
                self._end_evaluation()
                raise

        return loop

    def _start_evaluation(self) -> Tap:
        if self._tap is None or self._tap.model is not self._trainer.model:
            self._end_evaluation()
            self._tap = Tap(self._trainer.model, self._classifier)  # pyright: ignore[reportArgumentType]
        if self._evaluation is None:
            self._tap.renew()
            self._evaluation = Evaluation(self._tap, self._settings)
        return self._tap

    def _labels(self, inputs: dict[str, Any]) -> Any:
        # A model whose `forward` takes several kinds of labels has the names of all.
        present = [inputs[name] for name in self._trainer.label_names if inputs.get(name) is not None]
        labels = present[0] if len(present) == 1 else None
        self._unlabelled = list(inputs) if labels is None else []
        # A causal language model compares its output at a position with the label of the next position.
        return labels if labels is None or not self._shifts else F.pad(labels[:, 1:], (0, 1), value=LEFT_OUT)

    def _count_distinct(self, samples: int) -> int | None:
        """Return the number of leading samples of this process's batch that do not repeat others.

        The last batches of a distributed evaluation are filled with repeated samples.
        """
        state = self._trainer.accelerator.gradient_state
        if self._trainer.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return None
        return min(samples, max(0, state.remainder - self._trainer.args.process_index * samples))


def _predicts_the_next_token(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft
    known = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return type(inner).__name__ in known.values()
