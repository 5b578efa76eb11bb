"""Training configuration: read from TOML and validated, with all errors in one message."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ckpt_probe.addresses import clean_words
from ckpt_probe.budget import Budget
from ckpt_probe.errors import UsageError

PARSED = 1024
"""Bytes of memory that are counted for each byte of a configuration, which is parsed without speed."""
DEEP_KEY = re.compile(r"""(?<![\w"'-])([\w"'-]+[ \t]*\.[ \t]*){100}""")
"""Start of a dotted key of more than 100 parts, each of which takes memory for all parts before it."""
MOST_PROBLEMS = 20
"""Number of problems of a configuration that a message describes."""
SEED = "{seed}"
"""Placeholder for the seed in texts of a configuration, so that one file serves all seeds."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class DataSettings(_Section):
    """`[data]`: the data by name."""

    name: Annotated[str, AfterValidator(clean_words)]
    arguments: Annotated[dict[str, Any], AfterValidator(clean_words)] = {}


class ModelSettings(_Section):
    """`[model]`: the network by name."""

    name: str
    arguments: Annotated[dict[str, Any], AfterValidator(clean_words)] = {}


class TrainingSettings(_Section):
    """`[training]`: length in epochs or in steps, and the batch size."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | Literal["full"] = 64

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.batch_size != "full" and self.batch_size < 1:
            raise ValueError("batch_size must be at least 1, or 'full'")
        return self


class OptimizerSettings(_Section):
    """`[optimizer]`: SGD or AdamW; settings of the other one are an error."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0, lt=1e36)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: list[float] = [0.9, 0.999]

    @model_validator(mode="after")
    def _fitting(self) -> "OptimizerSettings":
        foreign = {"momentum", "nesterov"} if self.name == "adamw" else {"betas"}
        wrong = sorted(foreign & self.model_fields_set)
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not a setting of {self.name}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be two numbers in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum")
        return self


class ScheduleSettings(_Section):
    """`[schedule]`: the learning rate over the run; milestones are fractions of the run."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    milestones: list[float] = [0.5, 0.75]
    factor: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _fitting(self) -> "ScheduleSettings":
        only_step = sorted({"milestones", "factor"} & self.model_fields_set)
        if only_step and self.name != "step":
            raise ValueError(f"{', '.join(only_step)}: not a setting of the schedule {self.name}")
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError("milestones are fractions of the run, between 0 and 1")
        return self


class LossSettings(_Section):
    """`[loss]`: the loss of the task, and weights λ of matrix information losses that are added (`training.losses`)."""

    task: Literal["cross_entropy", "contrastive"] = "cross_entropy"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    cma: float = Field(default=0.0, ge=0)
    mir: float = Field(default=0.0, ge=0)
    hdr: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fitting(self) -> "LossSettings":
        if self.task == "contrastive" and self.label_smoothing:
            raise ValueError("label_smoothing: not a setting of the contrastive task")
        return self


class CheckpointSettings(_Section):
    """`[checkpoints]`: one of four schedules, each with the first and the last step; splits to evaluate (all)."""

    every_steps: int | None = Field(default=None, ge=1)
    per_epoch: int | None = Field(default=None, ge=1)
    log_spaced: int | None = Field(default=None, ge=2)
    steps: list[int] | None = None
    evaluate: list[str] | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> "CheckpointSettings":
        schedules = ("every_steps", "per_epoch", "log_spaced", "steps")
        chosen = [name for name in schedules if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"give one schedule, found {', '.join(chosen)}")
        if self.steps is not None and any(step < 0 for step in self.steps):
            raise ValueError("steps must not be negative")
        return self


class StartSettings(_Section):
    """`[start]`: weights to start from.

    Attributes:
        checkpoint: Path of the checkpoint; the key in TOML is `from`.
        part: "whole", or "backbone" for all weights except the classifier's.
        keep_step: Whether steps are counted from the step of the checkpoint.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.
    """

    checkpoint: str = Field(alias="from")
    part: Literal["whole", "backbone"] = "whole"
    keep_step: bool = False
    state_key: str | None = None
    base: str | None = None


class TrainingConfig(_Section):
    """All settings of a training run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    data: DataSettings
    model: ModelSettings
    training: TrainingSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    start: StartSettings | None = None


def load_config(path: Path | str, *, seed: int | None = None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read and validate the configuration in a TOML file.

    The placeholder "{seed}" in any text is replaced by the seed.

    Args:
        path: Path of the TOML file.
        seed: Seed that replaces the one in the file.
        overrides: Other values to replace, such as "loss.mir=0.01"; a value that is not TOML is text.

    Returns:
        The configuration.

    Raises:
        UsageError: If the file cannot be read, an override is malformed, or the seed occurs twice; or with every
            unknown key, wrong type and invalid value in one message, with their lines.
        DataError: If the file is beyond its budget.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: a directory, a pipe or a device; expected a TOML file")
    try:
        Budget(path).spend(PARSED * path.stat().st_size)
        text = path.read_text(encoding="utf-8")
        if DEEP_KEY.search(text):
            raise RecursionError("a key of more than 100 parts")
        values = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    replaced: dict[str, Any] = {}
    for override in overrides:
        key, value = _override(override)
        if key in replaced:
            raise UsageError(f"{_override_name(key)}: occurs twice; set each key once")
        replaced[key] = value
        _set(values, key, value)
    if seed is not None and "seed" in replaced:
        raise UsageError(f"{_override_name('seed')} and `seed` exclude each other: set the seed once")
    if seed is not None:
        values["seed"] = seed
    try:
        return TrainingConfig.model_validate(_seeded(values, values.get("seed", 0)))
    except ValidationError as error:
        # pydantic reports an error for each branch of a union; the first one is enough.
        faults = list({tuple(_keys(fault)): fault for fault in reversed(error.errors())}.values())[::-1]
        problems = sorted((_problem(fault, text, replaced) for fault in faults[:MOST_PROBLEMS]), key=itemgetter(0))
        more = f"; and {len(faults) - len(problems)} more" if len(faults) > len(problems) else ""
        count = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}"
        raise UsageError(f"{path}: {count}: {'; '.join(problem for _, problem in problems)}{more}") from error


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(part and re.fullmatch(r"[\w\-]+", part) for part in key.split(".")):
        raise UsageError(f"{_override_name(text)}: expected key=value, such as loss.mir=0.01")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": value.strip()}
    if len(parsed) > 1 or (parsed["value"] == value.strip() and "\n" in value.strip()):
        raise UsageError(f"{_override_name(key)}: expected one key=value, found several lines")
    return key, parsed["value"]


def _override_name(text: str) -> str:
    return f"`overrides={text!r}`"


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"{_override_name(key)}: {section} is a value, not a section")
    values[last] = value


def _seeded(value: Any, seed: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seeded(inner, seed) for key, inner in value.items()}
    if isinstance(value, list):
        return [_seeded(inner, seed) for inner in value]
    if isinstance(value, str) and SEED in value:
        return seed if value == SEED else value.replace(SEED, str(seed))
    return value


def _keys(fault: Any) -> list[str]:
    # pydantic adds the branch of a union to the keys, which is not in the file.
    return [str(part) for part in fault["loc"] if not re.fullmatch(r"int|float|none|literal\[.*", str(part), re.DOTALL)]


def _problem(fault: Any, text: str, overrides: Mapping[str, Any]) -> tuple[int, str]:
    """Return the line of a fault, 0 if no line sets the key, and its description."""
    keys = _keys(fault)
    name = ".".join(keys)
    line = 0 if name in overrides else _line_of(keys, text) or 0
    where = _override_name(name) if name in overrides else f"line {line}, {name}" if line else name
    return line, f"{where}: {_describe(fault, keys)}" if where else _describe(fault, keys)


def _describe(fault: Any, keys: list[str]) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known_keys(keys[:-1]), n=1, cutoff=0.5)
        return f"unknown key (did you mean {near[0]}?)" if near else "unknown key"
    if kind == "missing":
        return "missing"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], dict) else f", found {fault['input']!r}"
    return message[0].lower() + message[1:] + value


def _known_keys(section: list[str]) -> list[str]:
    fields = TrainingConfig.model_fields
    for key in section:
        annotation = fields[key].annotation if key in fields else None
        kinds = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if isinstance(kind, type)]
        fields = next((kind.model_fields for kind in kinds if issubclass(kind, BaseModel)), {})
    return [field.alias or name for name, field in fields.items()]


def _line_of(keys: list[str], text: str) -> int | None:
    """Return the number of the line that sets a key, None if no line does."""
    name, section, last = ".".join(keys), "", None
    for number, line in enumerate(text.replace('"', "").splitlines(), start=1):
        if header := re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line):
            section = header[1]
            if section == name:
                return number
            last = number if section in keys[:1] else last
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            spelled = f"{section}.{key[1]}".removeprefix(".")
            if f"{name}.".startswith(f"{spelled}."):
                return number
    return last
