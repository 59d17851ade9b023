"""The page of examples/web in a headless Chromium, with a model that `zoo.export` writes.

`SCREENSHOT=examples/web/screenshot.png pytest tests/examples/test_web.py -k seven` makes a picture.
"""

import functools
import itertools
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.datasets.augmentation import ImageAugmentation, resize
from zoo.export import export

pytestmark = [pytest.mark.parity, pytest.mark.slow]

FOLDER = Path(__file__).parents[2] / "examples" / "web"
IGNORED = shutil.ignore_patterns("node_modules", "digits.onnx")
READY = "#result[aria-busy=false]"

Strokes = list[list[tuple[float, float]]]

SEVEN: Strokes = [[(0.28, 0.22), (0.72, 0.22), (0.42, 0.8)]]
ZERO: Strokes = [
    [
        (0.5 + 0.2 * math.sin(math.tau * i / 16), 0.5 - 0.3 * math.cos(math.tau * i / 16))
        for i in range(17)
    ]
]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a folder as static files, and gives its address."""
    with ExitStack() as stack:

        def start(folder: Path) -> str:
            handler = functools.partial(QuietHandler, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs `pip install playwright`, without its browsers"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium, such as Debian's package")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `node_modules` of examples/web, installed elsewhere if they are not there."""
    installed = FOLDER / "node_modules"
    if installed.exists():
        return installed
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, or `npm install` in examples/web")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(FOLDER / name, folder)
    subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def site(browser: Any, library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as a user has it after the three commands of the guide to exports."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra `onnx`")
    folder = shutil.copytree(FOLDER, tmp_path_factory.mktemp("site") / "web", ignore=IGNORED)
    (folder / "node_modules").symlink_to(library)
    report = export("cnn_48x48-mnist", folder / "digits.onnx", "onnx", backends=["torch"])
    assert report.proven, report.failures
    return folder


@pytest.fixture(scope="module")
def opened_page(
    browser: Any, site: Path, serve: Callable[[Path], str]
) -> Iterator[tuple[Any, list[str]]]:
    """The page, with the model loaded, and all that was requested and logged."""
    page = browser.new_page(viewport={"width": 900, "height": 700})
    address, events = serve(site), []
    page.on("request", lambda request: events.append(request.url.removeprefix(address)))
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.goto(address)
    page.wait_for_selector(READY)
    yield page, events
    page.close()


@pytest.fixture
def page(opened_page: tuple[Any, list[str]]) -> Any:
    """The page without a drawing."""
    opened_page[0].click("#clear")
    opened_page[0].wait_for_selector(READY)
    return opened_page[0]


@pytest.fixture(scope="module")
def digits() -> Any:
    return zoo.load("cnn_48x48-mnist")


def positions(page: Any, stroke: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Positions, in the window, of points in [0, 1] of the drawing area."""
    box = page.locator("#drawing").bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]


def draw(page: Any, strokes: Strokes) -> None:
    """Draws with the mouse, and waits for the result."""
    for stroke in strokes:
        first, *rest = positions(page, stroke)
        page.mouse.move(*first)
        page.mouse.down()
        for position in rest:
            page.mouse.move(*position, steps=4)
        page.mouse.up()
    page.wait_for_selector(READY)


def probabilities(page: Any) -> list[float]:
    texts = page.eval_on_selector_all("#bars data", "all => all.map((data) => data.value)")
    return [float(text) for text in texts]


def save(page: Any, path: Path) -> np.ndarray:
    """Saves the image of the network's view as a user does; its grey levels."""
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "digit.png"
    download.value.save_as(path)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def rasterized(page: Any, strokes: Strokes) -> np.ndarray:
    code = """async (strokes) =>
        Array.from((await import("./preprocessing.js")).rasterize(strokes))"""
    return np.reshape(page.evaluate(code, strokes), (28, 28))


@pytest.mark.parametrize(("strokes", "digit"), [(SEVEN, "7"), (ZERO, "0")], ids=["seven", "zero"])
def test_page_recognises_a_drawn_digit(
    strokes: Strokes, digit: str, page: Any, digits: Any, tmp_path: Path
) -> None:
    draw(page, strokes)
    assert page.inner_text("#digit") == digit
    assert page.inner_text("#bars .best span") == digit
    assert probabilities(page)[int(digit)] > 0.9
    if digit == "7" and (picture := os.environ.get("SCREENSHOT")):
        page.screenshot(path=picture)
    save(page, tmp_path / "digit.png")
    expected = dict(digits.classify(tmp_path / "digit.png", top=10))
    for label, probability in zip("0123456789", probabilities(page), strict=True):
        assert probability == pytest.approx(expected[label], abs=1e-3)


def test_page_agrees_with_classify_where_the_network_is_unsure(
    page: Any, digits: Any, tmp_path: Path
) -> None:
    """Probabilities near 0 and 1 would agree also for inputs that differ a little."""
    draw(page, [[(0.3, 0.25), (0.7, 0.25), (0.45, 0.8), (0.7, 0.8)]])  # a two or a seven
    shown = probabilities(page)
    assert min(shown[2], shown[7]) > 0.2
    save(page, tmp_path / "digit.png")
    expected = dict(digits.classify(tmp_path / "digit.png", top=10))
    assert shown == pytest.approx([expected[label] for label in "0123456789"], abs=1e-3)


def test_preprocessing_has_the_bits_of_the_package(page: Any, digits: Any) -> None:
    code = """async (image) => {
        const { resize, normalize } = await import("./preprocessing.js");
        const resized = resize(Uint8Array.from(image), 28, 48);
        return [Array.from(resized), Array.from(normalize(resized))];
    }"""
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    images[0] = 255
    constants = digits.card.normalization
    normalize = ImageAugmentation(constants.mean, constants.std).normalize
    for image in images:
        resized, normalized = page.evaluate(code, image.ravel().tolist())
        expected = resize([image], 48)
        np.testing.assert_array_equal(np.reshape(resized, (1, 48, 48, 1)), expected)
        np.testing.assert_array_equal(
            np.float32(normalized).reshape(1, 48, 48, 3), np.asarray(normalize(expected))
        )


def test_drawing_becomes_an_image_of_mnist_whatever_its_size_and_place(page: Any) -> None:
    """A box of 20×20 pixels, the centre of mass in the middle of pixel (14, 14)."""
    image = rasterized(page, SEVEN)
    rows, columns = (np.flatnonzero(image.max(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (20, 21)
    assert image.max() == 255
    for axis in (0, 1):
        centre = image.sum(1 - axis) @ (np.arange(28) + 0.5) / image.sum()
        assert centre == pytest.approx(14.5, abs=0.1)  # grey edges move a little otherwise
    small = [[(0.9 + 0.12 * x, 0.02 + 0.12 * y) for x, y in stroke] for stroke in SEVEN]
    assert np.abs(rasterized(page, small) - image).max() <= 1


def test_drawing_of_a_dot_or_a_tall_line_stays_within_the_image(page: Any) -> None:
    dot = rasterized(page, [[(0.1, 0.9)]])
    assert 1 < dot.sum() / 255 < 12
    assert dot[14, 14] == 255
    jittered = rasterized(page, [[(0.1, 0.9), (0.11, 0.9)]])
    assert 1 < jittered.sum() / 255 < 18
    # All mass is at one end, so that its centre alone would move the other end out.
    blot = [[(0.5, 0.8), (0.52, 0.8)]] * 9 + [[(0.4, 0.78), (0.6, 0.82), (0.4, 0.85), (0.6, 0.85)]]
    image = rasterized(page, [*blot, [(0.5, 0.8), (0.5, 0.1)]])
    assert image[0].max() == image[-1].max() == 0
    assert np.ptp(np.flatnonzero(image.max(1))) + 1 in (20, 21)


def test_page_clears_and_takes_strokes_back(page: Any) -> None:
    def is_empty() -> bool:
        texts = page.eval_on_selector_all("#bars data", "all => all.map((data) => data.value)")
        return texts == [""] * 10 and page.inner_text("#digit") == ""

    assert is_empty()
    assert page.get_attribute("#save", "href") is None
    draw(page, SEVEN)
    before = probabilities(page)
    draw(page, [[(0.28, 0.22), (0.28, 0.8), (0.42, 0.8)]])
    assert probabilities(page) != before
    for shown in (before, []):
        page.click("#undo")
        page.wait_for_selector(READY)
        assert is_empty() if not shown else probabilities(page) == shown
    page.click("#undo")  # there is nothing left
    draw(page, SEVEN)
    page.click("#clear")
    page.wait_for_selector(READY)
    assert is_empty()


def test_page_takes_the_keyboard(page: Any) -> None:
    def press(*keys: str) -> None:
        for key in keys:
            page.keyboard.press(key)

    page.focus("#drawing")
    press(*["ArrowLeft"] * 5, *["ArrowUp"] * 8, "Space")
    press(*["ArrowRight"] * 10, *["ArrowDown", "ArrowDown", "ArrowLeft"] * 7, "Space")
    page.wait_for_selector(READY)
    assert page.inner_text("#digit") == "7"
    assert page.is_visible("#keys")
    press("Escape")
    page.wait_for_selector(READY)
    assert page.inner_text("#digit") == ""
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "undo"


def test_page_fits_a_phone_and_takes_touches(
    browser: Any, site: Path, serve: Callable[[Path], str]
) -> None:
    with browser.new_context(
        viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, color_scheme="dark"
    ) as context:
        page = context.new_page()
        page.goto(serve(site))
        page.wait_for_selector(READY)
        touches = context.new_cdp_session(page)
        for first, second in itertools.pairwise(positions(page, SEVEN[0])):
            for kind, (x, y) in (("touchStart", first), ("touchMove", second)):
                points = [{"x": round(x), "y": round(y)}]
                touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            touches.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_selector(READY)
        assert page.inner_text("#digit") == "7"
        assert page.evaluate("scrollY") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for selector in ("#drawing", "#clear", "#digit", "#bars"):
            box = page.locator(selector).bounding_box()
            assert box["y"] + box["height"] <= 640, selector
        right = [page.locator(name).bounding_box() for name in ("#input", "#bars")]
        assert right[0]["x"] + right[0]["width"] <= right[1]["x"] + right[1]["width"]


def test_page_loads_its_own_files_only(opened_page: tuple[Any, list[str]]) -> None:
    _, events = opened_page
    runtime = "node_modules/onnxruntime-web/dist/"
    needed = {
        "", "style.css", "page.js", "preprocessing.js", "digits.onnx",
        f"{runtime}ort.wasm.bundle.min.mjs", f"{runtime}ort-wasm-simd-threaded.wasm",
    }  # fmt: skip
    saved = {event for event in events if event.startswith("data:image/png")}
    assert set(events) - saved - {"icon.svg"} == needed


def test_page_says_what_is_missing(
    browser: Any, library: Path, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "web", ignore=IGNORED)
    page = browser.new_page()

    def message(address: str) -> str:
        page.goto(address)
        page.wait_for_selector("#message.error")
        text: str = page.inner_text("#message")
        return text

    assert message((folder / "index.html").as_uri()) == (
        "This page needs JavaScript and a web server. Run python -m http.server in its folder and "
        "open http://localhost:8000."
    )
    address = serve(folder)
    page.goto(address)
    page.wait_for_selector(READY)
    assert page.inner_text("#message") == (
        "onnxruntime-web is missing. Run npm install in this folder and reload."
    )
    (folder / "node_modules").symlink_to(library)
    page.reload()
    page.wait_for_selector(READY)
    assert page.inner_text("#message") == (
        "The model digits.onnx is missing (HTTP 404). Run zoo export cnn_48x48-mnist --format onnx "
        "--out digits.onnx in this folder and reload."
    )
    (folder / "digits.onnx").write_text("no model")
    page.reload()
    page.wait_for_selector(READY)
    assert page.inner_text("#message").startswith(
        "The model digits.onnx could not be loaded. Can't create a session."
    )
    page.close()


def test_page_states_the_figures_of_the_card() -> None:
    text = " ".join((FOLDER / "index.html").read_text("utf-8").split())
    card = zoo.load("cnn_48x48-mnist").card
    accuracies = {metrics.whole["test_accuracy"] for metrics in card.metrics.values()}
    assert f"with {card.parameters:,} parameters" in text
    assert accuracies == {0.9951}
    assert "recognises 99.51% of the 10,000 test images" in text
