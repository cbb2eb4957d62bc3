"""The results' page as its readers use it, in a headless Chromium: without one, these tests are skipped."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from finished import finished, saved
from test_page import EVIL, change

from gcp.report import live, page

sync_api = pytest.importorskip("playwright.sync_api")
REPO = Path(__file__).parents[1]
REFERENCE = REPO / "results" / "reference"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
LAYERS = [
    {"name": "conv0", "groups": ["conv0"], "dense": 64, "final": 8},
    {"name": "stage1", "groups": ["stage1"], "dense": 64, "final": 16},
    {"name": "stage2", "groups": ["conv0"], "dense": 64, "final": 8},
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """A function that opens a page, with its size; any error of a script fails the test."""
    said, pages = [], []

    def open_page(address: str, width: int = 1280):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("console", lambda message: message.type in ("error", "warning") and said.append(message.text))
        tab.set_default_timeout(120_000)  # of a busy machine
        pages.append(tab)
        tab.goto(address)
        tab.wait_for_selector("body[data-ready]")
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert said == []


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [
        finished(method, seed=seed, target=target, top1=top1 + 0.004 * seed, speeds=(1000.0, 1000 / target))
        for method, top1 in (("gcp", 0.9), ("uniform", 0.88))
        for target in (0.5, 0.1)
        for seed in (0, 1, 2)
    ]
    folder = saved(tmp_path_factory.mktemp("results"), runs)
    for path in folder.rglob("record.json"):
        change(path, widths__layers=LAYERS)
        rows = [{"event": "epoch", "stage": "final", "epoch": k, "training_loss": 1 / k} for k in (1, 2, 3)]
        (path.parent / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def address(results):
    (results / "page.html").write_text(page.page(page.contents(results, REFERENCE)), encoding="utf-8")
    return (results / "page.html").as_uri()


def points(tab):
    return tab.locator("#chart .mark-symbol[class*='marks'] path[aria-roledescription='point']")


def rows(tab):
    return tab.locator("#table tbody tr")


def first_column(tab):
    return [cell.strip() for cell in rows(tab).locator("td:first-child button").all_inner_texts()]


def settled(tab, condition: str) -> None:
    tab.wait_for_function(condition, timeout=120_000)


@pytest.mark.slow
def test_means_and_single_runs_are_points_and_rows(opened, address):
    tab = opened(address)
    assert points(tab).count() == rows(tab).count() == 5  # two methods at two targets, and the dense network
    tab.select_option("#points", "run")
    settled(tab, "document.querySelectorAll('#table tbody tr').length === 15")
    settled(tab, "document.querySelectorAll(\"#chart path[aria-roledescription='point']\").length === 15")


@pytest.mark.slow
def test_hovering_gives_the_numbers(opened, address):
    tab = opened(address)
    points(tab).first.hover(force=True)
    tip = tab.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    said = tip.inner_text()
    assert "Method" in said and "±" in said and "images/s" in said


@pytest.mark.slow
def test_a_click_shows_the_run_and_the_back_button_hides_it(opened, address):
    tab = opened(address)
    assert not tab.locator("#run").is_visible()
    points(tab).and_(tab.locator("[aria-label^='GCP-f']")).first.click(force=True)
    tab.locator("#run svg >> nth=1").wait_for()
    assert "run=" in tab.url and "scripts/run.py" in tab.locator("#run pre").first.inner_text()
    assert tab.locator("#run svg").count() == 2  # layers and the training curve
    assert "8 of 64" in tab.locator("#run").inner_html() and tab.locator("tr[aria-selected=true]").count() == 1
    second = opened(tab.url)  # the address alone says it all
    assert second.locator("#run h2").inner_text() == tab.locator("#run h2").inner_text()
    tab.go_back()
    tab.locator("#run").wait_for(state="hidden")
    tab.go_forward()
    tab.locator("#run").wait_for()


@pytest.mark.slow
def test_filters_leave_out_points_and_rows(opened, address):
    tab = opened(address)
    tab.locator("#filters details[data-key=method] summary").click()
    tab.locator("#filters details[data-key=method] input[value='GCP-f']").check()
    settled(tab, "document.querySelectorAll('#table tbody tr').length === 3")
    assert "method=GCP-f" in tab.url
    settled(tab, "document.querySelectorAll(\"#chart path[aria-roledescription='point']\").length === 3")
    tab.locator("#reset").click()
    settled(tab, "document.querySelectorAll('#table tbody tr').length === 5")


@pytest.mark.slow
def test_published_networks_are_a_layer_of_their_own(opened, address):
    tab = opened(address + "#x=images_per_second")
    before = points(tab).count()
    tab.locator("#layers input[value=published]").check()
    settled(tab, f"document.querySelectorAll(\"#chart path[aria-roledescription='point']\").length > {before + 40}")
    assert "devices" in tab.locator("#note").inner_text()


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_and_another_turns_it_round(opened, address):
    tab = opened(address)

    def accuracies():
        return [float(cell.split(" ")[0]) for cell in rows(tab).locator("td:nth-child(6)").all_inner_texts()]

    heading = tab.locator("#table th", has_text="Top-1").locator("button")
    heading.click()
    settled(tab, "document.querySelector('th[aria-sort=ascending]')")
    assert accuracies() == sorted(accuracies())
    tab.locator("#table th", has_text="Top-1").locator("button").click()
    settled(tab, "document.querySelector('th[aria-sort=descending]')")
    assert accuracies() == sorted(accuracies(), reverse=True)


@pytest.mark.slow
def test_every_pair_of_axes_can_be_drawn(opened, address):
    tab = opened(address)
    for axis in page.AXES:
        tab.select_option("#x", axis.key)
        tab.wait_for_timeout(150)
    tab.select_option("#y", "macs_kept")
    settled(tab, "location.hash.includes('y=macs_kept')")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(opened, address, width):
    tab = opened(address, width)
    rows(tab).locator("button", has_text="GCP-f").first.click()
    tab.locator("#run svg").first.wait_for()
    tab.wait_for_timeout(300)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_methods_differ_without_colour(opened, address):
    tab = opened(address)
    outlines = points(tab).evaluate_all(
        "marks => marks.map(mark => [mark.getAttribute('fill'), mark.getAttribute('d')])"
    )
    shapes = {}
    for colour, shape in outlines:
        shapes.setdefault(colour, set()).add(shape)
    assert len(shapes) == 3 and all(len(each) == 1 for each in shapes.values())
    assert len(set.union(*shapes.values())) == 3


@pytest.mark.slow
def test_text_of_records_is_never_run(opened, results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    for path in copy.rglob("record.json"):
        change(path, model=EVIL, data=EVIL, device__cpu=EVIL, date=EVIL)
    (copy / "page.html").write_text(page.page(page.contents(copy)), encoding="utf-8")
    tab = opened((copy / "page.html").as_uri())
    points(tab).first.hover(force=True)
    tab.locator("#vg-tooltip-element.visible").wait_for()
    points(tab).first.click(force=True)
    tab.locator("#run").wait_for()
    assert EVIL in tab.locator("#run").inner_text()
    assert tab.evaluate("window.hacked") is None and tab.locator("img").count() == 0


@pytest.mark.slow
def test_500_runs_are_all_drawn(opened, results, tmp_path):
    """Each with forty layers and a log, as records of real networks have; -s prints the seconds until all is there."""
    template = sorted(results.rglob("record.json"))[0]
    layers = [{**LAYERS[0], "name": f"layer{k}", "groups": [f"layer{k % 30}"]} for k in range(40)]
    for k in range(500):
        path = tmp_path / f"run{k}" / "record.json"
        shutil.copytree(template.parent, path.parent)
        change(path, fingerprint=f"{k:012x}", seed=k, stages__final__top1=0.5 + k / 2000, widths__layers=layers)
    (tmp_path / "page.html").write_text(page.page(page.contents(tmp_path)), encoding="utf-8")
    began = time.monotonic()
    tab = opened((tmp_path / "page.html").as_uri() + "#points=run")
    print(f"500 runs: {time.monotonic() - began:.2f} s")
    assert points(tab).count() >= 500


@pytest.mark.slow
def test_the_live_page_renews_itself(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 0.2)
    folder = saved(tmp_path / "results", [finished()])
    serving = live.server(folder, REFERENCE, 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        tab = opened(f"http://127.0.0.1:{serving.server_port}/")
        assert rows(tab).count() == 2
        saved(folder / "more", [finished("uniform", top1=0.8)])
        settled(tab, "document.querySelectorAll('#table tbody tr').length === 3")
        assert "looked at" in tab.locator("#live").inner_text()
        tab.goto("about:blank")  # it would ask a server that is gone
    finally:
        serving.shutdown()
        serving.server_close()
