"""A browser that opens the pages that tests write."""

import os
import shutil

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for found in map(shutil.which, NAMES) if found), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    options = ["--disable-gpu"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium's own sandbox refuses to run as root.
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=options)
        yield running
        running.close()


class Visit:
    """A page that is open, with what it said and asked for."""

    def __init__(self, page, path):
        self.page = page
        page.set_default_timeout(15_000)
        self.messages = []
        self.requests = []
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        self.state = page.evaluate("document.documentElement.dataset.ready")

    def selection(self):
        """The page's selection as plain lists."""
        return self.page.evaluate(
            """() => {
                const {selection} = report.view;
                return Object.fromEntries(["status", "group", "representative", "distance"].map(
                    (name) => [name, Array.from(selection[name])]));
            }"""
        )

    def pixels(self, selector):
        """The red values on a canvas, row by row, once an image is drawn there."""
        self.page.wait_for_selector(f"{selector}[data-drawn]")
        return self.page.evaluate(
            """(selector) => {
                const canvas = document.querySelector(selector);
                const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return Array.from({length: canvas.height}, (_, y) =>
                    Array.from({length: canvas.width}, (_, x) => data[4 * (y * canvas.width + x)]));
            }""",
            selector,
        )


@pytest.fixture
def visit(browser):
    """Opens a page, wide unless told otherwise, and looks for errors in the end."""
    open_pages = []

    def opened(path, width=1200, height=900, **options):
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        open_pages.append(Visit(page, path))
        return open_pages[-1]

    yield opened
    for opened_page in open_pages:
        opened_page.page.close()
        assert opened_page.state == "yes"
        assert opened_page.messages == []
        assert [url for url in opened_page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture(scope="session")
def digits():
    """240 handwritten digits of 8 x 8 pixels."""
    found = load_digits()
    images = torch.tensor(found.images[:240] / 16, dtype=torch.float32)
    return TensorDataset(images[:, None], torch.tensor(found.target[:240]))
