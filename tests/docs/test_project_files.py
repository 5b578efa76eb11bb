"""Checks that files for contributors can be parsed and agree with the package."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import ckpt_probe

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_version_is_the_same_in_all_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = parsed(ROOT / "docs" / "CITATION.cff")
    assert project["version"] == ckpt_probe.__version__ == str(citation["version"])
    assert citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"]
    assert citation["authors"]
    assert f"## {ckpt_probe.__version__} - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_continuous_integration_runs_make_test_on_every_supported_python() -> None:
    # YAML reads the key `on` as true.
    workflow = parsed(ROOT / ".github" / "workflows" / "ci.yml")
    assert {"push", "pull_request"} <= workflow[True].keys()
    [job] = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["system"]} == {"ubuntu", "macos"}
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert matrix["python"][0] == lowest.removeprefix(">=")
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    commands = [step.get("run", "") for step in job["steps"]]
    assert any("make test" in line for line in commands)
    # `make package` tests wheel and sdist in empty environments.
    assert any("make package" in line for line in commands)


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_an_issue_form_has_labelled_and_required_fields(form: Path) -> None:
    content = parsed(form)
    assert {"name", "description", "body"} <= content.keys()
    assert all(field["attributes"]["label"] for field in content["body"])
    assert any(field.get("validations", {}).get("required") for field in content["body"])


def test_the_routes_for_newcomers_name_definitions_of_the_package() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| `(\w+)` in `(\S+\.py)` \|", page, re.MULTILINE)
    assert {"extract_series", "compute_dump"} <= {name for name, _ in steps}
    for name, file in steps:
        source = (ROOT / "ckpt_probe" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b|^{name} = ", source, re.MULTILINE), (name, file)


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    plain = {target for target in targets if re.fullmatch(r"[a-z-]+", target)}
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    described = dict(re.findall(r"^make (\S+) +(.+\.)$", done.stdout, flags=re.M))
    assert described.keys() == plain


def test_the_pages_of_the_documentation_are_listed_in_its_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()
