"""The built book in a headless Chromium, as telephones and desks show it: `tox -e docs`."""

import functools
import html
import importlib
import inspect
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages

pytestmark = pytest.mark.skipif(
    "BOOK_HTML" not in os.environ, reason="needs the built book in BOOK_HTML: `tox -e docs`"
)

WIDTHS = (390, 1280)
SITE = Path(os.environ.get("BOOK_HTML", "nowhere"))
CHAPTERS = [path for path in (pages.DOCS / "chapters").glob("*.md") if path.stem != "index"]
FRENCH = [path.relative_to(pages.DOCS).with_suffix(".html").as_posix() for path in CHAPTERS]
FRENCH += ["index.html", "chapters/index.html", "guides/index.html", "guides/install.html"]
FRENCH += ["glossary.html"]
PAGES = [
    path for path in sorted(SITE.rglob("*.html")) if not {"_modules", "_static"} & set(path.parts)
]


def url_of(path: Path) -> str:
    """Address of a page within the site."""
    return path.relative_to(os.environ["BOOK_HTML"]).as_posix()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=os.environ["BOOK_HTML"])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium, such as Debian's package")
    with ExitStack() as stack:
        driver = stack.enter_context(playwright.sync_playwright())
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        stack.callback(started.close)
        yield started


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_screen_and_load_nothing_from_elsewhere(
    browser: Any, address: str, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    problems: list[str] = []
    page.on(
        "console", lambda message: message.type in ("error", "warning") and
        problems.append(f"{page.url}: {message.text}"),
    )  # fmt: skip
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on(
        "request", lambda request: request.url.startswith((address, "data:")) or
        problems.append(request.url),
    )  # fmt: skip
    assert len(PAGES) > 30
    for path in PAGES:
        page.goto(f"{address}/{url_of(path)}")
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            problems.append(f"{page.url} is wider than {width} pixels")
        if page.locator("img:not([alt]), img[alt='']").count():
            problems.append(f"{page.url} has a picture without a text")
    page.close()
    assert not problems


# A page of the reference is like another, and long; a French page is like the English one.
OTHERS = ["index.html", "results.html", "reference/export.html", "fr/chapters/transformers.html"]
ACCESSIBLE = [path for path in PAGES if path.relative_to(SITE).parts[0] in ("chapters", "guides")]


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_have_no_serious_fault_of_accessibility(
    browser: Any, address: str, width: int
) -> None:
    """By axe-core, among its rules those of contrast."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="needs `pip install axe-playwright-python`"
    ).Axe()
    page = browser.new_page(viewport={"width": width, "height": 800})
    faults = []
    for name in [*map(url_of, ACCESSIBLE), *OTHERS]:
        page.goto(f"{address}/{name}")
        result = axe.run(page)
        assert result.response["passes"]
        faults += [
            f"{name}: {fault['id']}: {fault['nodes'][0]['html']}"
            for fault in result.response["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
    page.close()
    assert not faults


def test_lines_of_code_fit_a_desk(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"{address}/chapters/training-program.html")
    code = "Array.from(document.querySelectorAll('.highlight-python pre'))"
    widths = page.evaluate(f"{code}.map((pre) => [pre.scrollWidth, pre.clientWidth])")
    assert widths
    assert all(needed <= there for needed, there in widths)
    page.close()


def test_reference_has_an_index_of_errors(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/reference/errors.html")
    entry = page.locator("dl.errors dt", has_text="must be numbers from").first
    assert entry.inner_text().startswith("rungs must be numbers from")
    assert "ValueError, parity.check.parse_rungs" in entry.locator("+ dd").inner_text()
    page.close()


def test_tabs_keep_the_backend_on_other_pages(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/chapters/activation-functions.html")
    page.get_by_text("PyTorch", exact=True).first.click()
    page.goto(f"{address}/chapters/neural-networks.html")
    chosen = page.locator(".sd-tab-set > input:checked + label").all_inner_texts()
    assert chosen
    assert set(chosen) == {"PyTorch"}
    page.close()


@pytest.mark.parametrize("page", CHAPTERS, ids=pages.name_of)
def test_notebook_has_the_code_that_the_page_runs(page: Path) -> None:
    path = Path(os.environ["BOOK_HTML"]) / "notebooks" / f"{page.stem}.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    run = [block.code.strip() for block in pages.blocks(page.read_text()) if not block.reason]
    assert code[1:] == run
    assert "KERAS_BACKEND" in code[0]
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert ":::" not in text
    assert "<!--" not in text


@pytest.mark.parametrize(
    "package", ["", ".training", ".layers", ".datasets", ".parity", ".export", ".tasks"]
)
def test_reference_has_every_public_name(package: str) -> None:
    inventory = pytest.importorskip("sphinx.util.inventory", reason="needs sphinx")
    content = (Path(os.environ["BOOK_HTML"]) / "objects.inv").read_bytes()
    known = {
        name
        for objects in inventory.InventoryFile.loads(content, uri="").data.values()
        for name in objects
    }
    module = importlib.import_module(f"zoo{package}")
    public = {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith(f"zoo{package}.")
        and not name.startswith("_")
    }
    assert public
    for name, value in public.items():
        paths = {f"zoo{package}.{name}", f"{value.__module__}.{value.__qualname__}"}
        assert paths & known, name


def test_search_finds_the_vanishing_gradient(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=vanishing+gradient")
    page.wait_for_selector("ul.search li a")
    found = page.locator("ul.search li a").all_inner_texts()
    assert {"Activation functions", "RNN, LSTM and GRU"} <= set(found)
    page.close()


def test_figures_answer_to_their_sliders(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/chapters/activation-functions.html")
    figure = page.locator("figure[data-figure=activations]")
    assert "y = 0.731" in figure.inner_text()  # the sigmoid of 1
    figure.locator("input").fill("60")
    assert "y = 0.500" in figure.inner_text()  # of 0
    page.close()


def test_links_lead_to_existing_files() -> None:
    missing = set()
    for path in PAGES:
        for link in re.findall(r'(?:href|src)="([^"]+)"', path.read_text("utf-8")):
            target = html.unescape(link).partition("#")[0].partition("?")[0]
            if target and not re.match(r"\w+:", target) and not (path.parent / target).exists():
                missing.add(f"{path.relative_to(SITE)}: {link}")
    assert not missing


def test_each_page_links_to_the_other_language() -> None:
    switch = re.compile(r'<a class="nav-link" href="([^"]+)" lang="(\w\w)"')
    for page in FRENCH:
        for path, there, other in (
            (SITE / page, "fr", SITE / "fr" / page),
            (SITE / "fr" / page, "en", SITE / page),
        ):
            address, language = switch.findall(path.read_text("utf-8"))[0]
            assert language == there
            assert (path.parent / address).resolve() == other.resolve()
    address, _ = switch.findall((SITE / "reference" / "models.html").read_text("utf-8"))[0]
    assert address == "../fr/index.html"  # this page is in English only


@pytest.mark.parametrize("page", FRENCH)
def test_french_page_is_french(page: str) -> None:
    text = (SITE / "fr" / page).read_text("utf-8")
    assert '<html lang="fr"' in text
    assert "search-button-field" in text
    article = text[text.index("<article") : text.index("</article>")]
    apart = r"<(pre|script|code|math|a)\b.*?</\1>|<[^>]*>"  # a link may have an English title
    prose = re.sub(apart, " ", article, flags=re.DOTALL)
    assert not re.search(r"\b(the|and|with|which|of)\b", prose)
    assert "{}" not in prose  # the place of a number


def test_french_numbers_and_typography_are_french() -> None:
    text = (SITE / "fr" / "chapters" / "convolutional-networks.html").read_text("utf-8")
    assert re.search(r'class="result" title="de results/[^"]+">\d\d,\d à \d\d,\d&nbsp;%<', text)
    assert re.search(r">12\N{NARROW NO-BREAK SPACE}800<", text)
    assert "<strong>Durée</strong>\N{NO-BREAK SPACE}: " in text
    assert "L\N{RIGHT SINGLE QUOTATION MARK}idée" in text
    assert "TensorFlow 2.21.0" in text  # a version is no number
    assert re.search(r"<td[^>]*><p>\d,\de-\d\d</p>", text)
    text = (SITE / "fr" / "chapters" / "transformers.html").read_text("utf-8")
    assert re.search(r"<p>\d,\d\N{NARROW NO-BREAK SPACE}; \d\d,\d</p>", text)


def test_french_figure_has_french_texts(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/fr/chapters/activation-functions.html")
    figure = page.locator("figure[data-figure=activations]")
    assert "y = 0,731 pente = 0,197" in figure.inner_text()  # the sigmoid of 1
    page.goto(f"{address}/fr/chapters/convolutional-networks.html")
    assert "pixel · poids" in page.locator("figure[data-figure=convolution] pre").inner_text()
    page.goto(f"{address}/fr/search.html?q=gradient+qui+dispara%C3%AEt")
    page.wait_for_selector("ul.search li a")
    found = page.locator("ul.search li a").all_inner_texts()
    assert "RNN, LSTM et GRU" in found
    page.close()
