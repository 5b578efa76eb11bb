"""Tests of functions by name, from files and installed packages, and of files that transformers loads."""

import ast
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import ckpt_probe
from ckpt_probe.errors import UsageError
from ckpt_probe.plugins import (
    functions_within,
    is_function_name,
    load_function,
    load_pretrained,
    registered,
    require_named,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.b:c", True), ("a:c", True), ("a:", False), (":c", False), ("idx:/some/dir", False), ("a b:c", False)],
)
def test_only_module_colon_function_is_a_function_name(name: str, expected: bool) -> None:
    assert is_function_name(name) is expected


def test_function_names_are_collected_from_arguments_of_any_depth() -> None:
    names = functions_within({"a": ["x", "m:f", {"deep:er": ("n.o:g", 3)}], "b": None, "c": "no function: this"})
    assert names == ["m:f", "deep:er", "n.o:g"]


def test_a_function_that_only_a_file_names_is_refused() -> None:
    require_named(["m:f"], "m:f", Path("a.safetensors"), "--model m:f")
    require_named([], None, Path("a.safetensors"), "")
    message = r"^a\.safetensors: names the function n:g, which is not called .* yourself: --model m:f"
    with pytest.raises(UsageError, match=message):
        require_named(["m:f", "n:g"], "m:f", Path("a.safetensors"), "--model m:f")


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_under_test.py").write_text("def build():\n    return 7\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    assert load_function("plugin_under_test:build")() == 7
    with pytest.raises(UsageError, match="has no function missing"):
        load_function("plugin_under_test:missing")
    with pytest.raises(UsageError, match="has no function number"):
        load_function("plugin_under_test:number")


@pytest.mark.parametrize(
    ("name", "message"), [("no_such_module_at_all:f", "cannot import"), ("nonsense", "package.module:function")]
)
def test_a_function_that_cannot_be_loaded_is_a_usage_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_function(name)


def test_entry_points_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckpt_probe.models]\ntiny = thirdparty_models:tiny\n")
    (tmp_path / "thirdparty_models.py").write_text("def tiny():\n    return 'tiny'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert registered("ckpt_probe.models")["tiny"]() == "tiny"
    assert "tiny" not in registered("ckpt_probe.data")


FILES = {
    "AutoConfig": ("config.json", {"model_type": "evil"}),
    "AutoTokenizer": ("tokenizer_config.json", {"tokenizer_class": "Evil"}),
    "AutoImageProcessor": ("preprocessor_config.json", {"image_processor_type": "Evil"}),
    "AutoFeatureExtractor": ("preprocessor_config.json", {"feature_extractor_type": "Evil"}),
}


class UncheckedLoader:
    """A loader that calls another one without `trust_remote_code`."""

    @staticmethod
    def from_pretrained(source: Path, **options: Any) -> Any:
        import transformers

        return transformers.AutoFeatureExtractor.from_pretrained(source, local_files_only=True)


@pytest.mark.parametrize("loader", [*FILES, "UncheckedLoader"])
def test_code_of_a_directory_is_not_run_and_no_question_is_asked(
    loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers
    from transformers import dynamic_module_utils

    name = loader if loader in FILES else "AutoFeatureExtractor"
    file, content = FILES[name]
    mapped: Any = "evil.Evil" if name != "AutoTokenizer" else ["evil.Evil", None]
    (tmp_path / file).write_text(json.dumps({**content, "auto_map": {name: mapped}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(ValueError):
        load_pretrained(UncheckedLoader if loader == "UncheckedLoader" else getattr(transformers, loader), tmp_path)
    assert sys.stdin.read() == "y\n" * 9
    assert not (tmp_path / "ran").exists()
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0
    assert "Do you wish" not in capsys.readouterr().out


def test_only_one_function_calls_from_pretrained() -> None:
    root = Path(ckpt_probe.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    calls = ("from_pretrained", "from_config")
    trees = {path: ast.parse(text) for path, text in sources.items() if any(name in text for name in calls)}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    (only,) = [(path, node) for path, node in nodes if _names(node, "from_pretrained")]
    gate = next(part for part in trees[only[0]].body if getattr(part, "name", None) == "load_pretrained")
    assert only[1] in ast.walk(gate)
    for path, node in nodes:
        if isinstance(node, ast.Call) and (_names(node.func, "from_pretrained") or _names(node.func, "from_config")):
            values = [word.value for word in node.keywords if word.arg == "trust_remote_code"]
            assert [ast.unparse(value) for value in values] == ["False"], f"{path}:{node.lineno}"


def _names(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == name) or (
        isinstance(node, ast.Constant) and node.value == name
    )
