"""Tests of the page in a browser: drawings, the slider, the keyboard, and the texts for assistive technology."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.reporting.material import Material
from ckpt_probe.reporting.page import write_page
from ckpt_probe.reporting.sections import gather
from ckpt_probe.reporting.sources import open_sources

_spec = importlib.util.spec_from_file_location(
    "benchmarks_chromium", Path(__file__).parents[2] / "benchmarks" / "chromium.py"
)
assert _spec is not None
assert _spec.loader is not None
chromium = importlib.util.module_from_spec(_spec)
sys.modules["benchmarks_chromium"] = chromium
_spec.loader.exec_module(chromium)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.missing() is not None, reason=f"no test in a browser: {chromium.missing()}"),
]

CARDS = "return [...document.querySelectorAll('[data-key]')].map((card) => card.dataset.key)"
DRAWN = """
const marks = [...arguments[0].querySelectorAll(".plot svg path, .plot svg rect, .plot svg circle, tbody td")];
return marks.filter((mark) => { const box = mark.getBoundingClientRect(); return box.width + box.height > 0; }).length;
"""
FOCUSABLE = """
const wanted = "a[href], button, input, select, summary, [tabindex='0']";
return [...document.querySelectorAll(wanted)].filter((one) => one.checkVisibility());
"""
NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium.browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    options = Material(class_names=NAMES, data="digits")
    write_page(gather(open_sources(study.sources), options), file, command="ckpt-probe report")
    return file


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    """Return the page with all sections, loaded again."""
    return look(driver, page)


def look(driver: Any, page: Path, *, width: int = 1280, dark: bool = False, media: str = "") -> Any:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    chromium.console(driver), chromium.requests(driver)
    chromium.open_page(driver, page)
    return driver


def card(driver: Any, key: str) -> Any:
    """Return a card, scrolled into view and drawn."""
    [element] = driver.find_elements("css selector", f'[data-key="{key}"]')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)))"
    )
    return element


def slide(driver: Any, position: int) -> None:
    driver.execute_script(
        "const s = document.getElementById('checkpoint'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        position,
    )


def test_every_plot_has_marks_without_requests_or_console_errors(opened: Any) -> None:
    keys = opened.execute_script(CARDS)
    kinds = {"metric", "cosines", "spectrum", "classes", "examples", "path", "plane"}
    assert {key.partition("-")[0] for key in keys} == kinds
    for key in keys:
        assert opened.execute_script(DRAWN, card(opened, key)) > 5, key
    lines = card(opened, "metric-loss").find_elements("css selector", "g[aria-label=line] path")
    assert len(lines) == 4
    assert len(card(opened, "cosines-means").find_elements("css selector", "g[aria-label=cells] rect")) == 100
    assert len(card(opened, "plane-abc-train").find_elements("css selector", "g[aria-label=contour] path")) > 3
    assert card(opened, "path-plain-loss").find_elements("css selector", "g[aria-label=rule] line")
    slide(opened, 0)
    slide(opened, 3)
    assert chromium.console(opened) == []
    assert chromium.requests(opened) == []


def test_the_content_security_policy_is_in_force(opened: Any) -> None:
    """Injected scripts are not run, and injected addresses are not loaded."""
    opened.execute_script(
        """const script = document.createElement("script"); script.textContent = "window.hurt = 1";
        const image = new Image(); image.src = "https://example.org/a.png";
        document.body.append(script, image)"""
    )
    assert opened.execute_script("return window.hurt === undefined")
    assert chromium.requests(opened) == []
    assert len(chromium.console(opened)) == 2


SEEN: dict[str, tuple[str, str]] = {
    "metric-class.mir": (".cursor line", "x1"),
    "cosines-means": ("g[aria-label=cells] rect:nth-of-type(2)", "fill"),
    "cosines-weights": ("g[aria-label=cells] rect:nth-of-type(2)", "fill"),
    "spectrum-sample.features": (".now path", "d"),
    "classes": ("tbody tr:nth-child(2) td:nth-child(3)", "textContent"),
}


def test_the_slider_moves_every_plot_of_checkpoints_together(opened: Any) -> None:
    def texts_of_plots() -> dict[str, tuple[str, str]]:
        texts = {}
        for key, (selector, attribute) in SEEN.items():
            plot_card = card(opened, key)
            [element] = plot_card.find_elements("css selector", selector)[:1]
            title = plot_card.find_elements("css selector", ".readout, caption")[0]
            texts[key] = (element.get_attribute(attribute), title.text)
        return texts

    before = texts_of_plots()
    slide(opened, 1)
    after = texts_of_plots()
    for key in SEEN:
        assert before[key][0] != after[key][0], key
        assert before[key][1] != after[key][1], key
    assert "step-000010" in after["cosines-means"][1]
    assert opened.find_element("id", "position").text == "training step 10"
    slide(opened, 3)
    assert texts_of_plots() == before
    # A click on a point of a plot moves the slider.
    plot = card(opened, "metric-loss").find_element("css selector", ".plot")
    opened.execute_script(
        """const box = arguments[0].querySelector("svg").getBoundingClientRect();
        const at = {clientX: box.left + 50, clientY: box.top + 90, bubbles: true};
        arguments[0].dispatchEvent(new MouseEvent("click", at))""",
        plot,
    )
    assert opened.find_element("id", "position").text == "training step 0"


def test_the_keyboard_reaches_each_control_in_order_and_moves_the_slider(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("window.reached = []; addEventListener('focusin', (event) => reached.push(event.target))")
    controls = opened.execute_script(FOCUSABLE)
    opened.find_element("tag name", "body").send_keys(Keys.TAB * len(controls))
    assert opened.execute_script("return window.reached") == controls
    unnamed = [control.get_attribute("outerHTML") for control in controls[:40] if not control.accessible_name]
    assert unnamed == []
    slider = opened.find_element("id", "checkpoint")
    slider.send_keys(Keys.ARROW_LEFT)
    assert opened.find_element("id", "position").text == "training step 30"
    assert slider.get_attribute("aria-valuetext") == "training step 30"
    slider.send_keys(Keys.HOME)
    assert opened.find_element("id", "position").text == "training step 0"


def test_runs_splits_and_axes_can_be_toggled(opened: Any) -> None:
    def lines() -> int:
        return len(card(opened, "metric-loss").find_elements("css selector", "g[aria-label=line] path"))

    boxes = opened.find_elements("css selector", "fieldset input")
    assert (len(boxes), lines()) == (4, 4)
    boxes[0].click()
    assert lines() == 2
    boxes[2].click()
    assert lines() == 1
    before = card(opened, "metric-loss").find_element("css selector", "g[aria-label=line] path").get_attribute("d")
    for button in ("[aria-label='Logarithmic x axis']", "[aria-label='loss: logarithmic y axis']"):
        toggle = opened.find_element("css selector", button)
        pressed = toggle.get_attribute("aria-pressed")
        opened.execute_script("arguments[0].click()", toggle)
        assert toggle.get_attribute("aria-pressed") != pressed
        after = card(opened, "metric-loss").find_element("css selector", "g[aria-label=line] path").get_attribute("d")
        assert after != before
        before = after
    from selenium.webdriver.support.ui import Select

    assert "a · step-000060" in card(opened, "cosines-means").text
    Select(opened.find_element("id", "picture-run")).select_by_value("b")
    assert "b · step-000060" in card(opened, "cosines-means").text
    assert chromium.console(opened) == []


def test_the_table_can_be_sorted_filtered_and_copied(opened: Any) -> None:
    table = card(opened, "classes")

    def column(number: int) -> list[str]:
        return [cell.text for cell in table.find_elements("css selector", f"tbody tr > :nth-child({number})")]

    assert column(1) == [*NAMES, *"3456789"]
    [_, samples, *_] = table.find_elements("css selector", "thead th")
    samples.find_element("tag name", "button").click()
    counts = [int(text) for text in column(2)]
    assert (counts, samples.get_attribute("aria-sort")) == (sorted(counts, reverse=True), "descending")
    samples.find_element("tag name", "button").click()
    assert [int(text) for text in column(2)] == sorted(counts)
    table.find_element("id", "class-filter").send_keys("o")
    assert set(column(1)) == set(NAMES)
    assert table.find_element("css selector", ".count").text == "3 of 10 classes"
    opened.execute_script(
        "navigator.clipboard.writeText = async (text) => { window.copied = text }; document.execCommand = () => false"
    )
    [copy] = table.find_elements("css selector", "button[aria-label*=CSV]")
    copy.click()
    header, *rows = opened.execute_script("return window.copied").splitlines()
    assert header.startswith("class,samples,")
    assert [row.partition(",")[0] for row in rows] == column(1)
    assert copy.text == "Copied"


def test_the_table_of_examples_shows_pictures_of_the_chosen_run(opened: Any) -> None:
    table = card(opened, "examples-worst")
    assert len(table.find_elements("css selector", "tbody canvas")) == 30
    grey = "const c = arguments[0]; return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert opened.execute_script(grey, table.find_element("css selector", "tbody canvas")) > 5
    captions = [table.find_element("tag name", "caption").text]
    for key, value in (("run", "b"), ("split", "test")):
        choose = (
            "s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
        )
        opened.execute_script(choose, f"picture-{key}", value)
        captions.append(card(opened, "examples-worst").find_element("tag name", "caption").text)
    assert [caption.split(" examples: ")[0] for caption in captions] == [
        "a · train · 1,347",
        "b · train · 1,347",
        "b · test · 450",
    ]
    assert len(card(opened, "examples-runs").find_elements("css selector", "tbody tr")) == 2


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (380, True)])
def test_the_page_has_no_serious_accessibility_fault_and_fits_the_screen(
    driver: Any, page: Path, width: int, dark: bool
) -> None:
    axe = pytest.importorskip("axe_core_python", reason="no test of accessibility: pip install axe-core-python")
    look(driver, page, width=width, dark=dark)
    for details in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", details)
    driver.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    result = driver.execute_async_script("axe.run({resultTypes: ['violations']}).then(arguments[0])")
    assert len(result["passes"]) > 20
    faults = [
        (fault["id"], fault["impact"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in result["violations"]
        if fault["impact"] in {"serious", "critical"}
    ]
    assert faults == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_printed_page_draws_everything_and_hides_the_controls(driver: Any, page: Path) -> None:
    look(driver, page, dark=True, media="print")
    hidden = ".tools, nav, .slide input, .filter, .step"
    assert not any(element.is_displayed() for element in driver.find_elements("css selector", hidden))
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    printed = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000


@pytest.mark.parametrize("width", [1280, 380])
def test_a_hostile_record_is_shown_as_text(driver: Any, hostile: Any, tmp_path: Path, width: int) -> None:
    out = tmp_path / "report.html"
    assert run(["report", *hostile.words, "-o", str(out)]) == 0
    look(driver, out, width=width)
    for key in driver.execute_script(CARDS)[:3]:
        driver.execute_script("arguments[0].scrollIntoView()", driver.find_element("css selector", "[data-key]"))
        assert key
    for position in (0, 5):
        slide(driver, position)
    assert driver.execute_script("return window.hurt === undefined")
    assert driver.find_elements("css selector", "img") == []
    assert chromium.console(driver) == []
    assert chromium.requests(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return document.documentElement.scrollHeight") < 40_000
    names = [heading.text for heading in driver.find_elements("css selector", "tbody th[scope=row]")]
    assert hostile.texts[0] in names


def test_a_page_without_checkpoints_has_no_slider(driver: Any, study: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_page(gather(open_sources([study.sources[2]])), out)
    look(driver, out)
    assert driver.find_elements("id", "checkpoint") == []
    assert driver.execute_script(DRAWN, card(driver, "path-plain-loss")) > 5
    assert chromium.console(driver) == []


@pytest.fixture(scope="module")
def page_of_layers(layered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("layers") / "report.html"
    write_page(gather(open_sources([str(layered)])), file)
    return file


def test_maps_of_layers_are_drawn_and_follow_the_slider(driver: Any, page_of_layers: Path) -> None:
    opened = look(driver, page_of_layers)
    keys = [key for key in opened.execute_script(CARDS) if key.partition("-")[0] in ("layers", "separation")]
    assert len(keys) > 15
    for key in keys:
        assert opened.execute_script(DRAWN, card(opened, key)) > 5, key
    map_card = card(opened, "layers-nc1.pinv")
    assert len(map_card.find_elements("css selector", "g[aria-label=cells] rect")) == 3 * 4 + 1
    colours = []
    for position in (0, 3):
        slide(opened, position)
        map_card = card(opened, "layers-nc1.pinv")
        frame = map_card.find_elements("css selector", "g[aria-label=cells] rect")[-1]
        image = map_card.find_element("css selector", ".plot")
        colours.append((float(frame.get_attribute("x")), image.get_attribute("aria-label")))
    assert colours[0][0] == 0 < colours[1][0]
    assert "At 0:" in colours[0][1]
    assert "At 60:" in colours[1][1]
    assert "penultimate" in colours[1][1]
    slide(opened, 0)
    between = card(opened, "layers-cka")
    assert "CKA of 3 layers" in between.find_element("css selector", ".plot").get_attribute("aria-label")
    assert chromium.console(opened) == []
    assert chromium.requests(opened) == []


def test_a_page_of_groups_begins_with_differences_and_unfolds_other_metrics(driver: Any, tmp_path: Path) -> None:
    for group in ("plain", "decay"):
        for seed in range(3):
            folder = tmp_path / "runs" / group / f"seed-{seed}"
            folder.mkdir(parents=True)
            rows = [
                {"step": step, "split": "test", **{f"number.{i}": i + step * (seed + len(group)) for i in range(9)}}
                for step in (1, 10, 100)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page(gather(open_sources([str(tmp_path / "runs")])), tmp_path / "report.html")
    opened = look(driver, tmp_path / "report.html")
    sections = opened.find_elements("css selector", "main section")
    assert [section.get_attribute("id") for section in sections] == ["reading", "differences", "metrics", "origin"]
    table, *cards = opened.find_elements("css selector", "#differences [data-key]")
    assert len(table.find_elements("css selector", "tbody tr")) == 9
    assert len(cards) == 6
    key = cards[0].get_attribute("data-key")
    assert len(card(opened, key).find_elements("css selector", "g[aria-label=line] path")) == 2
    assert [box.text for box in opened.find_elements("css selector", "legend")] == ["Groups"]
    folded = opened.find_element("css selector", "#metrics details")
    assert not folded.find_element("css selector", "[data-key]").is_displayed()
    opened.execute_script("arguments[0].open = true", folded)
    inside = folded.find_element("css selector", "[data-key]")
    assert opened.execute_script(DRAWN, card(opened, inside.get_attribute("data-key"))) > 5
    assert inside.find_element("css selector", ".plot svg").size["width"] > 240
    assert chromium.console(opened) == []


def test_long_names_break_no_number_and_stretch_no_row_and_every_colour_is_visible_in_the_dark(
    driver: Any, tmp_path: Path
) -> None:
    rows = [
        {"step": n, "split": split, "loss": 1 / n, "accuracy": n / 9} for n in (1, 5, 9) for split in ("train", "test")
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for number in range(9):
        (tmp_path / f"{'🚀a long name ' * 9}{number}.jsonl").write_text(text)
    write_page(gather(open_sources(sorted(map(str, tmp_path.glob("*.jsonl"))))), tmp_path / "runs.html")
    opened = look(driver, tmp_path / "runs.html", width=380, dark=True)
    items = card(opened, "metric-loss").find_elements("css selector", ".readout .item")
    assert [item.text.split()[-2] for item in items[-4:]] == ["train", "test", "train", "test"]
    assert "�" not in items[0].text
    lines = "return [...document.querySelectorAll('.readout b')].map((value) => value.getClientRects().length)"
    assert set(opened.execute_script(lines)) == {1}
    strokes = "return [...document.querySelectorAll('.readout line')].map((line) => getComputedStyle(line).stroke)"
    lightness = [float(stroke.removeprefix("oklab(").split()[0]) for stroke in opened.execute_script(strokes)]
    assert len(lightness) == 2 * 2 * 9
    assert min(lightness) > 0.45
    for group in "ab":
        for seed in range(2):
            folder = tmp_path / "groups" / f"{group}{'_long_name' * 9}" / f"seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text(text.replace("1.0", f"{1 + seed / 7 + (group == 'b')}"))
    write_page(gather(open_sources([str(tmp_path / "groups")])), tmp_path / "groups.html")
    opened = look(driver, tmp_path / "groups.html")
    table = opened.find_element("css selector", "#differences table")
    assert all(row.size["height"] < 60 for row in table.find_elements("css selector", "tbody tr"))
    assert table.size["width"] <= 1280
