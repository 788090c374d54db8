"""The page in a real browser. Needs a Chromium of the machine (Debian: `apt install chromium`).

With `REPORT_RUNS=<ASR run>:<TTS run>` the last test takes the screenshots of the documents.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.report.live import serve
from cluster.report.page import render
from cluster.report.runs import read_runs
from cluster.runs import durable
from cluster.runs.ledger import LedgerEntry
from tests.cluster.report.conftest import WriteRun, group, heard, said
from tests.cluster.report.test_page import EVIL
from tests.cluster.report.test_utterances import tone
from tests.waiting import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; on Debian: apt install chromium")
PLAYED = "audio => audio.play().then(() => new Promise(done => { audio.onended = () => done(audio.currentTime); }))"
Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """Complaints of the browser, and requests for something that is not in the page."""
    return []


@pytest.fixture
def visit(browser: Browser, faults: list[str], tmp_path: Path) -> Iterator[Open]:
    """Opens the page of runs from a file. Fails at its end on any fault."""
    pages: list[Page] = []

    def watch(page: Page, allowed: tuple[str, ...]) -> None:
        page.on("console", lambda m: faults.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda r: None if r.url.startswith(allowed) else faults.append(f"request: {r.url[:100]}"))

    def visit(*runs: Path, address: str | None = None, **options: object) -> Page:
        page = browser.new_page(viewport={"width": 1360, "height": 850}, **options)  # type: ignore[arg-type]
        pages.append(page)
        watch(page, ("file:", "data:", "blob:", *([address] if address else [])))
        if address is None:
            file = tmp_path / f"page{len(pages)}.html"
            file.write_text(render(read_runs(runs)), encoding="utf-8")
            assert file.stat().st_size < 20_000_000
            address = file.as_uri()
        page.goto(address)
        page.wait_for_selector("#panels", state="attached")
        return page

    yield visit
    for page in pages:
        page.close()
    assert faults == []


@pytest.fixture
def spoken(write_run: WriteRun, tmp_path: Path) -> Path:
    """A run of a model that speaks; its second judge doubts the first utterance."""
    sound = {"wave": tone(tmp_path / "long.wav", 1.0)}
    short = {"wave": tone(tmp_path / "short.wav", 0.5), "seconds": 0.5}
    before = [
        said("a", "turn on the light", "turn on the light tomorrow", "turn on the night tomorrow", **sound),
        said("b", "stop", "stop now please", "stop", seconds=2.0, wave="/gone.wav"),
        said("c", "call anna", "call anna", "call anna", language="de"),
    ]
    after = [
        said("a", "turn on the light", "turn on the light", "turn on the night", **short),
        said("b", "stop", "stop", "stop", seconds=2.0, wave="/gone.wav"),
        said("c", "call anna", "call hanna", "call anna", language="de"),
    ]
    groups = {
        step: [
            group(
                "x", "stop", [("stop", {"accuracy": 1.0, "keyword": 1.0}), ("top", {"accuracy": 0.0, "keyword": 0.5})]
            ),
            group("y", "go", [("go", {"accuracy": 1.0, "keyword": 1.0})] * 2),
        ]
        for step in (1, 2)
    }
    metrics = [
        {"reward/mean": 0.1 * i, "learner/entropy": 2.0 - 0.1 * i, "time/step": 1.0, "time/learn": 0.5}
        for i in range(1, 13)
    ]
    return write_run(
        "spoken", metrics=metrics, before=before, after=after, groups=groups, ledger=[LedgerEntry("0/x", "trained")]
    )


def ids(page: Page) -> list[str]:
    texts = page.locator("#utterance-table tbody tr td:first-child .hint").all_inner_texts()
    return [text.partition(" · ")[0] for text in texts]


def scroll_to_curves(page: Page) -> None:
    """Plots are drawn when they come near."""
    page.evaluate("document.getElementById('curves').scrollIntoView()")
    page.wait_for_selector(".plot .main-svg")


def test_sort_filter_and_play(visit: Open, spoken: Path) -> None:
    page = visit(spoken)
    assert ids(page) == ["b", "c", "a"], "most changed first"
    page.select_option("#f-sort", "worse")
    assert ids(page)[0] == "c"
    page.select_option("#f-kind", "doubted")
    assert ids(page) == ["a"]
    page.select_option("#f-kind", "all")
    page.fill("#f-text", "ANNA")
    assert ids(page) == ["c"]
    page.fill("#f-text", "")
    page.select_option("#f-lang", "de")
    assert ids(page) == ["c"]
    page.select_option("#f-lang", "")
    page.fill("#f-min", "1.5")
    assert ids(page) == ["b"] and page.inner_text("#f-count") == "1 of 3"
    assert "no sound: no such file" in page.inner_text("#utterance-table")
    page.fill("#f-min", "")
    page.fill("#f-text", "turn")
    assert page.locator("#utterance-table audio").count() == 2
    seconds = page.locator("#utterance-table audio").first.evaluate(PLAYED)
    assert seconds == pytest.approx(1.0, abs=0.2)
    widths = page.locator("#utterance-table canvas").evaluate_all("all => all.map(one => one.style.width)")
    assert widths == ["100%", "50%"], "both sides have one scale"


def test_curves_groups_and_smoothing(visit: Open, spoken: Path) -> None:
    page = visit(spoken)
    scroll_to_curves(page)
    before = page.locator(".plot .js-line").nth(1).get_attribute("d")
    page.locator("#smoothing").fill("0.9")
    assert page.locator(".plot .js-line").nth(1).get_attribute("d") != before
    first, second = page.locator(".group").all_inner_texts()
    assert "stop" in first and "teaches nothing" in second
    page.select_option("#g-sort", "flat")
    assert "teaches nothing" in page.locator(".group").first.inner_text()
    page.select_option("#g-step", "2")
    page.fill("#g-text", "0/x")
    assert page.inner_text("#g-count") == "1 of 2 groups"


def test_a_warning_leads_to_its_utterances(visit: Open, write_run: WriteRun) -> None:
    text = "turn on the light"
    before = [said(str(i), text, "turn on a night", "turn on a light") for i in range(8)]
    after = [said(str(i), text, text, "turn on a light") for i in range(8)] + [said("9", text, text, text)]
    page = visit(write_run(metrics=[{"x": 1.0}, {"x": 2.0}], before=before, after=after))
    page.click("text=Those utterances")
    assert page.input_value("#f-kind") == "doubted" and page.inner_text("#f-count") == "8 of 9"


def test_nothing_of_a_transcript_runs(visit: Open, faults: list[str], write_run: WriteRun) -> None:
    lines = [heard(EVIL, EVIL, EVIL, audio=EVIL)]
    parts = {"accuracy": 1.0}
    groups = {1: [group(EVIL, EVIL, [(EVIL, parts), ("x", {"accuracy": 0.0}), (EVIL, None)])]}
    page = visit(
        write_run(before=lines, after=lines, groups=groups, ledger=[LedgerEntry(f"0/{EVIL}", "rejected", EVIL)])
    )
    assert page.locator("main img, main script").count() == 0
    assert "<script>alert('heard')" in page.inner_text("#utterance-table")
    assert "<script>alert('heard')" in page.inner_text("#group-cards")
    assert faults == []
    page.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
        "document.body.append(one); }"
    )
    assert page.evaluate("window.ran") is None, "the page's policy runs no script but its own"
    assert "Content Security Policy" in faults.pop() and faults == []


def test_several_runs(visit: Open, spoken: Path, write_run: WriteRun) -> None:
    other = write_run("other", metrics=[{"reward/mean": 0.2 * i} for i in range(9)], overrides=["learner.lr=0.5"])
    page = visit(spoken, other)
    assert page.inner_text("main section:first-child h2") == "What differs between the runs"
    assert "learner.lr" in page.inner_text("#differences")
    scroll_to_curves(page)
    assert page.locator(".plot").first.locator(".js-line").count() == 4, "two runs, each as measured and smoothed"


def test_dark_and_printed(visit: Open, spoken: Path, tmp_path: Path) -> None:
    page = visit(spoken, color_scheme="dark")
    back = "() => getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(14, 18, 23)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(back) == "rgb(245, 246, 248)"
    page.emulate_media(media="print")
    undrawn = "() => [...document.querySelectorAll('.plot')].filter(plot => !plot.querySelector('.main-svg')).length"
    until(lambda: page.evaluate(undrawn) == 0)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(back) == "rgb(255, 255, 255)", "paper is light, also for whoever reads in the dark"
    text = page.evaluate("() => getComputedStyle(document.body).color")
    assert text == "rgb(28, 33, 40)"
    assert not page.is_visible("nav") and not page.is_visible("#filters")
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_news_comes_in_while_it_is_open(visit: Open, spoken: Path) -> None:
    import threading

    addresses: list[str] = []
    started = threading.Event()

    def note(address: str) -> None:
        addresses.append(address)
        started.set()

    threading.Thread(target=serve, args=([spoken], 0, note), daemon=True).start()
    assert started.wait(60)
    page = visit(address=addresses[0])
    page.fill("#f-text", "turn")
    scroll_to_curves(page)
    assert "12 of 3" in page.inner_text("#result")
    durable.append(spoken / "metrics.jsonl", [{"step": 13, "reward/mean": 2.0, "time/step": 1.0}])
    page.wait_for_selector("#result >> text=13 of 3", timeout=60_000)
    assert page.input_value("#f-text") == "turn" and ids(page) == ["a"], "what was chosen stays"
    scroll_to_curves(page)


@pytest.mark.skipif("REPORT_RUNS" not in os.environ, reason="takes the screenshots of the documents; set REPORT_RUNS")
def test_screenshots(visit: Open) -> None:
    asr, tts = (Path(path) for path in os.environ["REPORT_RUNS"].split(":"))
    images = ROOT / "docs" / "images"
    page = visit(asr)
    page.set_viewport_size({"width": 1360, "height": 1000})
    scroll_to_curves(page)
    undrawn = "() => [...document.querySelectorAll('.plot')].slice(0, 6).filter(p => !p.firstElementChild).length"
    until(lambda: page.evaluate(undrawn) == 0)
    page.screenshot(path=images / "report_asr.png")
    page = visit(tts, color_scheme="dark")
    page.set_viewport_size({"width": 1360, "height": 1290})
    page.click("text=Those utterances")
    page.add_style_tag(content="#curves, #result .cards, #result .scroll:not(:has(#judges)) { display: none }")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)  # players find out how long their sound is
    page.screenshot(path=images / "report_tts.png")
    assert all((images / f"report_{name}.png").stat().st_size < 300_000 for name in ("asr", "tts"))
