"""User functions by name, entry points of installed packages, and optional libraries."""

import copy
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from ckpt_probe.addresses import is_address
from ckpt_probe.budget import Budget, require_regular
from ckpt_probe.errors import UsageError, last_line

TEXT_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".yaml", ".yml"})
"""Suffixes of the small files that a model's directory has besides its weights."""
PARSED = 8
"""Bytes of memory for each byte of such a file, which transformers parses."""


def is_function_name(name: str) -> bool:
    """Return whether a name has the form `package.module:function` or `path/to/file.py:function`, unlike `idx:DIR`."""
    module, _, function = name.rpartition(":")
    if not function.isidentifier():
        return False
    return module.endswith(".py") or all(part.isidentifier() for part in module.split("."))


def require_named(functions: Sequence[str], by_caller: str | None, file: Path, option: str) -> None:
    """Raise UsageError if a file, and not the caller, names one of these functions.

    A file can name any function of any module, so that calling it would execute untrusted code. Likewise, data at an
    address (`npz:https://…`) would make this machine download from any server.

    Args:
        functions: Names of functions in the file.
        by_caller: Name that the caller passed, which is allowed, or None.
        file: Path of the file, for the message.
        option: Keyword or option with which the caller can name the function, for the message.
    """
    for name in functions:
        if name != by_caller:
            refused = f"the function {name}, which is not called because any file could name any function"
            if is_address(name.partition(":")[2]):
                refused = f"data at {name}, which are not fetched because any file could name any address"
            raise UsageError(f"{file}: names {refused}; if you trust it, name it yourself: {option}")


def functions_within(arguments: Any) -> list[str]:
    """Return all names of functions, and of data at addresses, in nested arguments: their receiver may use them."""
    if isinstance(arguments, str):
        return [arguments] if is_function_name(arguments) or is_address(arguments.partition(":")[2]) else []
    if isinstance(arguments, Mapping):
        return functions_within([*arguments.keys(), *arguments.values()])
    if isinstance(arguments, list | tuple):
        return [name for part in arguments for name in functions_within(part)]
    return []


def load_function(name: str) -> Callable[..., Any]:
    """Import a function by its name, `package.module:function` or `path/to/file.py:function`.

    Modules in the working directory can be named too, and a file can import other files of its directory.

    Raises:
        UsageError: If the module cannot be imported, or does not contain the function.
    """
    module_name, _, function_name = name.rpartition(":")
    if not is_function_name(name):
        raise UsageError(f"{name!r}: not of the form package.module:function or path/to/file.py:function")
    try:
        module = _of_file(Path(module_name)) if module_name.endswith(".py") else _of_package(module_name)
    except Exception as error:
        raise UsageError(f"{name}: cannot import {module_name}: {last_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{name}: {module_name} has no function {function_name}")
    return function


def require_extra(module: str, extra: str) -> Any:
    """Import an optional library; raise UsageError with the command that installs its extra if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module.partition(".")[0]:
            raise UsageError(f'{module} is not installed; pip install "ckpt-probe[{extra}]"') from error
        raise UsageError(f"{module} cannot be imported: {last_line(error)}") from error
    except Exception as error:  # such as torchvision built for another torch
        raise UsageError(f"{module} is installed, but cannot be imported: {last_line(error)}") from error


@contextmanager
def parts_imported(library: str) -> Iterator[None]:
    """Report in one line that a library cannot import a part, which it does when that part is first used.

    Args:
        library: Name of the library.

    Raises:
        UsageError: With the first cause, such as a torchvision built for another torch.
    """
    try:
        yield
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UsageError(f"{library} is installed, but a part of it cannot be imported: {last_line(cause)}") from error


@contextmanager
def hub_switched_off() -> Iterator[None]:
    """Set the libraries of Hugging Face offline within the context, including those that are imported already."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    constants = _hub_constants()
    online = None if constants is None else constants.HF_HUB_OFFLINE
    try:
        if constants is not None:
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        if constants is not None:
            constants.HF_HUB_OFFLINE = online


@contextmanager
def quiet_transformers(transformers: Any) -> Iterator[None]:
    """Disable the progress bars of transformers and its messages below errors within the context."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_pretrained(loader: Any, source: Any, **options: Any) -> Any:
    """Call `from_pretrained` of a class of transformers offline, silently and without code from files.

    Every call in the package goes through here. Code that a directory names (`auto_map`) is refused; transformers also
    cannot ask on standard input whether to run it, in this call or in calls that it makes itself.

    Args:
        loader: A class of transformers, such as `AutoTokenizer`.
        source: A local directory, or None if `options` contain all that is needed.
        **options: Further arguments of `from_pretrained`.
    """
    transformers = require_extra("transformers", "transformers")
    dynamic: Any = importlib.import_module("transformers.dynamic_module_utils")
    if source is not None:
        _spend_texts(Path(source))
    seconds = getattr(dynamic, "TIME_OUT_REMOTE_CODE", None)
    with hub_switched_off(), quiet_transformers(transformers), parts_imported("transformers"):
        try:
            dynamic.TIME_OUT_REMOTE_CODE = 0  # transformers raises an error instead of waiting for an answer
            return loader.from_pretrained(source, local_files_only=True, trust_remote_code=False, **options)
        finally:
            dynamic.TIME_OUT_REMOTE_CODE = seconds


def loaded_by_transformers(
    model_class: Any, config: Any, tensors: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Convert tensors of a checkpoint to the current names of a model of transformers, with its own loader.

    Args:
        model_class: Class of the model.
        config: Configuration of the model.
        tensors: Tensors of the checkpoint by name.

    Returns:
        The loaded tensors by their current names, and the loading information of transformers.
    """
    loaded, information = load_pretrained(
        model_class,
        None,
        config=copy.deepcopy(config),
        state_dict=dict(tensors),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    missing = information["missing_keys"]
    return {name: tensor for name, tensor in loaded.state_dict().items() if name not in missing}, information


def _spend_texts(directory: Path) -> None:
    """Raise DataError if the texts of a directory, such as its tokenizer, are beyond their budget, or one is a pipe."""
    for file in directory.iterdir() if directory.is_dir() else ():
        require_regular(file)
        if file.suffix in TEXT_SUFFIXES and file.is_file():
            budget = Budget(file)
            budget.spend(PARSED * file.stat().st_size)
            if file.name == "config.json":
                with suppress(ValueError, RecursionError):  # which transformers reports
                    _spend_labels(budget.parse_json(file.read_bytes()), budget)


def _spend_labels(entry: Any, budget: Budget) -> None:
    """Count the names of classes that transformers makes of their number, also in the parts of a configuration."""
    if isinstance(entry, dict):
        count = entry.get("num_labels")
        budget.spend(entries=max(count, 0) if isinstance(count, int) else 0, cause="num_labels: ")
        for value in entry.values():
            _spend_labels(value, budget)


def _hub_constants() -> Any:
    try:
        return importlib.import_module("huggingface_hub.constants")
    except ImportError:
        return None


def _of_package(name: str) -> ModuleType:
    here = str(Path.cwd())
    # Only for this module, since any other file there could replace a library.
    if here not in sys.path and PathFinder.find_spec(name.partition(".")[0], [here]) is not None:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    path = path.resolve()
    # Files of the same name in different directories are different modules.
    name = f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise FileNotFoundError("no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def registered(group: str) -> dict[str, Callable[..., Any]]:
    """Return the functions that installed packages register as entry points.

    Args:
        group: Group of entry points: `ckpt_probe.models`, `ckpt_probe.data` or `ckpt_probe.metrics`.
    """
    return {point.name: point.load() for point in entry_points(group=group)}
