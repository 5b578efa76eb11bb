"""Functions by name, from the working directory and from installed packages."""

import sys
from pathlib import Path

import pytest

from ckpt_probe.errors import UsageError
from ckpt_probe.plugins import functions_within, is_function_name, load_function, registered, require_named


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a.b:c", True), ("a:c", True), ("a:", False), (":c", False), ("idx:/some/dir", False), ("a b:c", False)],
)
def test_function_names(name: str, is_one: bool) -> None:
    assert is_function_name(name) is is_one


def test_functions_within_arguments_of_any_depth() -> None:
    found = functions_within({"a": ["x", "m:f", {"deep:er": ("n.o:g", 3)}], "b": None, "c": "no function: this"})
    assert found == ["m:f", "deep:er", "n.o:g"]


def test_what_only_a_file_names_is_refused() -> None:
    require_named(["m:f"], "m:f", Path("a.safetensors"), "--model m:f")
    require_named([], None, Path("a.safetensors"), "")
    told = r"^a\.safetensors: names the function n:g, which is not called .* yourself: --model m:f"
    with pytest.raises(UsageError, match=told):
        require_named(["m:f", "n:g"], "m:f", Path("a.safetensors"), "--model m:f")


def test_a_module_beside_the_caller_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_cannot_be_loaded_is_a_usage_error(name: str, message: str) -> None:
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
