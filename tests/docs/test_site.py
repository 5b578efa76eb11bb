"""The documentation's site: complete, built without a warning, every link in it leads somewhere."""

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
    named = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.M)}
    assert set(ckpt_probe.__all__) - named == set()


def test_the_gallery_shows_every_figure() -> None:
    shown = set(re.findall(r"\((studies/figures/[^)]+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8")))
    assert shown == {f"studies/figures/{file.name}" for file in (DOCS / "studies" / "figures").iterdir()}


class Links(HTMLParser):
    """What a page points to, and the places in it that can be pointed to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            elif name in {"href", "src"} and value and tag in {"a", "img", "link", "script"}:
                self.targets.append(value)


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", out]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True)


@pytest.mark.slow
@needs_mkdocs
def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = build(ROOT / "mkdocs.yml", site)
    assert done.returncode == 0, done.stderr
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert any(place.endswith("Moments.merge") for page in pages.values() for place in page.places)
    for page, links in pages.items():
        for target in links.targets:
            path, _, place = target.partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            there = (page.parent / path).resolve() if path else page
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{page}: {target}"
            assert not place or there not in pages or place in pages[there].places, f"{page}: {target}"


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
