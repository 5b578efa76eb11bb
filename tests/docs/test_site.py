"""Checks of the documentation's site: it is complete, is built without warnings, and its links have targets."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import ckpt_probe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAVIGATION = re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
needs_mkdocs = pytest.mark.skipif(
    not (find_spec("mkdocs") and find_spec("mkdocstrings")), reason='needs mkdocs: pip install "ckpt-probe[docs]"'
)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(NAVIGATION) == sorted(pages)


def test_every_public_name_is_in_the_reference() -> None:
    documented = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.M)}
    assert set(ckpt_probe.__all__) - documented == set()


def test_the_gallery_shows_every_figure() -> None:
    figures = set(re.findall(r"\((studies/figures/[^)]+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8")))
    assert figures == {f"studies/figures/{file.name}" for file in (DOCS / "studies" / "figures").iterdir()}


class Links(HTMLParser):
    """A parser that collects the targets of links in a page, and the anchors to which links can point."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in {"href", "src"} and value and tag in {"a", "img", "link", "script"}:
                self.targets.append(value)


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", out]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True)


@pytest.mark.slow
@needs_mkdocs
def test_the_site_is_built_and_its_links_have_targets(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = build(ROOT / "mkdocs.yml", site)
    assert done.returncode == 0, done.stderr
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert any(anchor.endswith("Moments.merge") for page in pages.values() for anchor in page.anchors)
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            linked = (page.parent / path).resolve() if path else page
            linked = linked / "index.html" if linked.is_dir() else linked
            assert linked.exists(), f"{page}: {target}"
            assert not anchor or linked not in pages or anchor in pages[linked].anchors, f"{page}: {target}"


@pytest.mark.slow
@needs_mkdocs
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    for name in ("docs", "ckpt_probe"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "glossary.md").open("a") as page:
        page.write("\n[nowhere](no-such-page.md)\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-page.md" in done.stderr
