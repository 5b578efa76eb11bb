"""A training configuration: TOML in, typed settings out, every fault named at once."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ckpt_probe.addresses import clean_words
from ckpt_probe.errors import UsageError

SEED = "{seed}"
"""Stands for the seed in a configuration's texts: a file of one run serves all its seeds."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class DataSettings(_Section):
    """`[data]`: which labelled samples."""

    name: Annotated[str, AfterValidator(clean_words)]
    arguments: Annotated[dict[str, Any], AfterValidator(clean_words)] = {}


class ModelSettings(_Section):
    """`[model]`: which network."""

    name: str
    arguments: Annotated[dict[str, Any], AfterValidator(clean_words)] = {}


class TrainingSettings(_Section):
    """`[training]`: how long, in epochs or in steps, and how many samples a step."""

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
    """`[optimizer]`: SGD or AdamW; keys of the one are an error for the other."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: list[float] = [0.9, 0.999]

    @model_validator(mode="after")
    def _fitting(self) -> "OptimizerSettings":
        strangers = {"momentum", "nesterov"} if self.name == "adamw" else {"betas"}
        given = sorted(strangers & self.model_fields_set)
        if given:
            raise ValueError(f"{', '.join(given)}: not a setting of {self.name}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be two numbers in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum")
        return self


class ScheduleSettings(_Section):
    """`[schedule]`: the learning rate over the run; milestones are fractions of it."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    milestones: list[float] = [0.5, 0.75]
    factor: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _fitting(self) -> "ScheduleSettings":
        given = sorted({"milestones", "factor"} & self.model_fields_set)
        if given and self.name != "step":
            raise ValueError(f"{', '.join(given)}: not a setting of the schedule {self.name}")
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError("milestones are fractions of the run, between 0 and 1")
        return self


class LossSettings(_Section):
    """`[loss]`: the task's loss, and what is added to it: λ of each matrix information loss (`training.losses`)."""

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
    """`[checkpoints]`: one of four schedules, first and last step always kept; splits evaluated at each (all)."""

    every_steps: int | None = Field(default=None, ge=1)
    per_epoch: int | None = Field(default=None, ge=1)
    log_spaced: int | None = Field(default=None, ge=2)
    steps: list[int] | None = None
    evaluate: list[str] | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> "CheckpointSettings":
        schedules = ("every_steps", "per_epoch", "log_spaced", "steps")
        given = [name for name in schedules if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one schedule, found {', '.join(given)}")
        if self.steps is not None and any(step < 0 for step in self.steps):
            raise ValueError("steps must not be negative")
        return self


class StartSettings(_Section):
    """`[start]`: weights to begin from, all of them or all but the classifier's; `keep_step` goes on at their step.

    state_key, base: where in the checkpoint its weights lie, and onto which an adapter is merged.
    """

    checkpoint: str = Field(alias="from")
    part: Literal["whole", "backbone"] = "whole"
    keep_step: bool = False
    state_key: str | None = None
    base: str | None = None


class TrainingConfig(_Section):
    """Everything that decides a training run."""

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
    """The configuration in a TOML file; `seed` replaces the file's own, `overrides` ("loss.mir=0.01") other values.

    An override's value is TOML where it is any, else text. In every text "{seed}" stands for the seed. Raises
    UsageError where the file is missing or no TOML, for an override that is none, where both `seed` and an override
    give the seed, or naming every unknown key, wrong type and impossible value at once, each with its line where it
    has one.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: a directory, a pipe or a device; expected a TOML file")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    pairs = [_override(text) for text in overrides]
    given = dict(pairs)
    if len(given) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UsageError(f"--set {next(key for key in keys if keys.count(key) > 1)}: given twice; give each key once")
    if seed is not None and "seed" in given:
        raise UsageError("--set seed=… and --seed or --seeds exclude each other: give the seed once")
    for key, value in given.items():
        _set(values, key, value)
    if seed is not None:
        values["seed"] = seed
    try:
        return TrainingConfig.model_validate(_seeded(values, values.get("seed", 0)))
    except ValidationError as error:
        # A value that fits no branch of a union is told once a branch; the first telling is enough.
        problems = {tuple(_keys(fault)): _problem(fault, text, given) for fault in reversed(error.errors())}
        raise UsageError(_one_line(path, sorted(problems.values(), key=_line_number))) from error


def _override(text: str) -> tuple[str, Any]:
    key, equals, spelled = text.partition("=")
    key = key.strip()
    if not equals or not all(part and re.fullmatch(r"[\w\-]+", part) for part in key.split(".")):
        raise UsageError(f"--set {text}: expected key=value, such as loss.mir=0.01")
    try:
        found = tomllib.loads(f"value = {spelled}")
    except tomllib.TOMLDecodeError:
        found = {"value": spelled.strip()}
    if len(found) > 1 or (found["value"] == spelled.strip() and "\n" in spelled.strip()):
        raise UsageError(f"--set {key}: expected one key=value, found more lines; give each its own --set")
    return key, found["value"]


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {key}: {section} is a value, not a section")
    values[last] = value


def _seeded(value: Any, seed: Any) -> Any:
    if isinstance(value, dict):
        return {key: _seeded(inner, seed) for key, inner in value.items()}
    if isinstance(value, list):
        return [_seeded(inner, seed) for inner in value]
    if isinstance(value, str) and SEED in value:
        return seed if value == SEED else value.replace(SEED, str(seed))
    return value


def _one_line(path: Path, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path}: {count}: " + "; ".join(problems)


def _line_number(problem: str) -> int:
    match = re.match(r"line (\d+),", problem)
    return int(match[1]) if match else 0


def _keys(fault: Any) -> list[str]:
    return [str(part) for part in fault["loc"] if not _is_branch(part)]


def _problem(fault: Any, text: str, overrides: Mapping[str, Any]) -> str:
    keys = _keys(fault)
    name = ".".join(keys)
    line = None if name in overrides else _line_of(keys, text)
    where = (f"line {line}, " if line else "--set " if name in overrides else "") + name
    return f"{where}: {_said(fault, keys)}" if where else _said(fault, keys)


def _is_branch(part: object) -> bool:
    # pydantic names the branch of a union it tried, which is nothing that the file says.
    return isinstance(part, str) and (part in {"int", "float", "none"} or part.startswith("literal["))


def _said(fault: Any, keys: list[str]) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(keys[-1], _known_keys(keys[:-1]), n=1, cutoff=0.5)
        return f"unknown key (did you mean {near[0]}?)" if near else "unknown key"
    if kind == "missing":
        return "missing"
    message = fault["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(fault["input"], dict) else f", found {fault['input']!r}"
    return message[0].lower() + message[1:] + shown


def _known_keys(section: list[str]) -> list[str]:
    model: Any = TrainingConfig
    for key in section:
        field = model.model_fields.get(key)
        model = _section_of(field.annotation) if field is not None else None
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_of(annotation: Any) -> Any:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _line_of(keys: list[str], text: str) -> int | None:
    """The line on which a key path is spelled, looked for section by section; None where it is not spelled."""
    section = ""
    last = None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([\w.\-\"]+)\s*\]+", line)
        if header:
            section = header[1].replace('"', "")
            if section == ".".join(keys):
                return number
            if keys and section == keys[0]:
                last = number
            continue
        key = re.match(r"\s*([\w.\-\"]+)\s*=", line)
        if key:
            spelled = ".".join(part for part in (section, key[1].replace('"', "")) if part)
            if spelled == ".".join(keys) or ".".join(keys).startswith(f"{spelled}."):
                return number
    return last
