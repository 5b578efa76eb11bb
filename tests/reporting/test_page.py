"""Tests of the page's file: its policy allows its own parts only, its data are the contents, texts are escaped."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.reporting.page import PLOT_STYLE, STATIC, page_of
from ckpt_probe.reporting.sections import Contents, gather
from ckpt_probe.reporting.sources import open_sources


class Parts(HTMLParser):
    """The elements of a page by name, with their attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(texts)) for name, attributes, texts in self.found if name == tag]


@pytest.fixture(scope="module")
def contents(study: Any) -> Contents:
    return gather(open_sources(study.sources))


def sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def data_of(page: str) -> dict[str, Any]:
    [text] = [text for attributes, text in Parts(page).of("script") if attributes.get("type") == "application/json"]
    return json.loads(text)


def numbers(data: dict[str, Any], reference: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data["arrays"][reference["array"]]), dtype=f"<{reference['type']}")


def test_the_policy_allows_the_pages_own_parts_and_nothing_else(contents: Contents) -> None:
    parts = Parts(page_of(contents))
    [policy] = [a["content"] for a, _ in parts.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = [text for attributes, text in parts.of("script") if attributes.get("type") != "application/json"]
    assert len(scripts) == 3
    assert allowed["script-src"].split() == [sha(script) for script in scripts]
    assert allowed["style-src"].split() == [
        sha(text) for text in [*(text for _, text in parts.of("style")), (STATIC / PLOT_STYLE).read_text()]
    ]
    assert {name: allowed[name] for name in ("default-src", "base-uri", "form-action")} == dict.fromkeys(
        ("default-src", "base-uri", "form-action"), "'none'"
    )
    assert "unsafe" not in policy
    # The policy comes before all elements to which it applies.
    assert [tag for tag, _, _ in parts.found][:4] == ["html", "head", "meta", "meta"]
    for _, attributes, _ in parts.found:
        assert {"src", "style", "onload", "onerror", "onclick"}.isdisjoint(attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_the_embedded_data_equal_the_contents(contents: Contents) -> None:
    data = data_of(page_of(contents, "ckpt-probe report x"))
    assert data["command"] == "ckpt-probe report x"
    plot_of = {plot["key"]: plot for s in data["sections"] for g in s["groups"] for plot in g["plots"]}
    count = 0
    for section in contents.sections:
        for plot in section.plots:
            for line, described in zip(getattr(plot, "lines", ()), plot_of[plot.key].get("lines", ()), strict=True):
                assert numbers(data, described["x"]).tolist() == list(line.x)
                assert numbers(data, described["y"]) == pytest.approx(np.array(line.y), rel=1e-7, nan_ok=True)
                count += 1
            for frame, described in zip(getattr(plot, "frames", ()), plot_of[plot.key].get("frames", ()), strict=True):
                assert described["shape"] == list(frame.values.shape)
                expected = frame.values.ravel()
                assert numbers(data, described["values"]) == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
                count += 1
    assert count > 100


def test_pages_of_the_same_sources_are_identical(contents: Contents, study: Any) -> None:
    again = gather(open_sources(study.sources))
    assert page_of(contents) == page_of(again)


def test_a_page_of_many_checkpoints_stays_small(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": 100 * s, "split": t, **{f"m{n}": s * 0.37 + n for n in range(40)}})
        for s in range(500)
        for t in ("train", "test")
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    page = page_of(gather(open_sources([str(tmp_path / "a.jsonl")])))
    assert len(page.encode()) < 1_500_000


def test_texts_of_files_are_escaped(hostile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert run(["report", *hostile.words, "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", captured.out + captured.err) is None
    page = out.read_bytes().decode("utf-8")
    parts = Parts(page)
    assert len(parts.of("script")) == 4
    assert not parts.of("img")
    assert not parts.of("b")
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page) is None
    data = data_of(page)
    table = next(p for s in data["sections"] for g in s["groups"] for p in g["plots"] if p["kind"] == "ClassTable")
    [labels] = table["labels"].values()
    assert labels[:3] == list(hostile.texts[:3])
    assert labels[4].startswith("␛[2J␛[31mred")


def test_the_packaged_libraries_have_their_stated_hashes() -> None:
    listed = (STATIC / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    files = sorted((STATIC / "vendor").glob("*.js"))
    assert len(files) == 2
    for file in files:
        assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" in listed
