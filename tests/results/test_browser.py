"""report.html in headless Chromium: no script error, no empty plot, nothing asked of a network, both colour schemes."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import results
from results.record import Record

pytestmark = pytest.mark.needs_chromium

ARGUMENTS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --window-size=1280,900""".split()


class Browser:
    """As much of the WebDriver protocol as these tests need, over chromedriver."""

    def __init__(self, port: int, profile: Path) -> None:
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": shutil.which("chromium"),
            "args": [*ARGUMENTS, f"--user-data-dir={profile}"],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})
        deadline = time.monotonic() + 30
        while self.run("return document.documentElement.dataset.ready") != "true":
            assert time.monotonic() < deadline, f"the page never drew its plots: {self.log()}"
            time.sleep(0.1)

    def run(self, script: str, *arguments: Any) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def emulate(self, **features: str) -> None:
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._call(
            "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": media}}
        )

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call(
            "POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        )

    def log(self) -> list[str]:
        """Console messages since the last call."""
        return [f"{e['level']}: {e['message']}" for e in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert driver.stdout is not None
    try:
        port = None
        for line in driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                port = int(found.group(1))
                break
        assert port is not None, "chromedriver did not start"
        browser = Browser(port, tmp_path_factory.mktemp("profile"))
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(10)
        driver.stdout.close()


@pytest.fixture
def page(browser: Browser, record: Record, tmp_path: Path) -> Iterator[Browser]:
    """The report of a full record, freshly opened at a desktop's size in light colours."""
    results.write_reports(record, tmp_path)
    browser.emulate(prefers_color_scheme="light")
    browser.resize(1280, 900)
    browser.log()
    browser.open((tmp_path / "report.html").as_uri())
    yield browser


PLOTS = """return [...document.querySelectorAll('.plot')].map(plot => ({
    id: plot.id,
    marks: plot.querySelectorAll('.scatterlayer .points path, .barlayer .point path').length,
    width: plot.querySelector('.main-svg')?.getBoundingClientRect().width ?? 0,
    height: plot.querySelector('.main-svg')?.getBoundingClientRect().height ?? 0,
    room: plot.clientWidth}))"""


def test_no_script_error_and_no_network(page: Browser) -> None:
    assert page.log() == []
    asked = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [url for url in asked if not url.startswith("data:")] == []


def test_no_plot_is_empty(page: Browser) -> None:
    plots = page.run(PLOTS)
    assert [plot["id"] for plot in plots] == [
        "plot-front",
        "plot-trained",
        "plot-operations",
        "plot-layers",
        "plot-training",
    ]
    for plot in plots:
        assert plot["marks"] >= 3, plot
        assert plot["width"] == pytest.approx(plot["room"], abs=2) and plot["height"] > 150, plot


def test_hover_tells_the_architecture(page: Browser) -> None:
    text = page.run(
        "const plot = document.getElementById('plot-front');"
        "Plotly.Fx.hover(plot, [{curveNumber: plot.data.length - 1, pointNumber: 0}]);"
        "return [...plot.querySelectorAll('.hoverlayer text')].map(e => e.textContent).join(' ')"
    )
    assert "power4" in text and "rounds" in text


def test_switch_from_bytes_to_rounds(page: Browser) -> None:
    read = "return document.querySelector('#plot-operations .xtitle').textContent"
    assert "MB" in page.run(read)
    page.run("document.querySelector('[data-plot=operations] [data-unit=rounds]').click()")
    time.sleep(0.3)
    assert "rounds" in page.run(read)
    assert next(p for p in page.run(PLOTS) if p["id"] == "plot-operations")["marks"] >= 3
    assert page.log() == []


def test_dark_colours_reach_the_plots(page: Browser) -> None:
    colour = "return getComputedStyle(document.querySelector('#plot-front .xtick text')).fill"
    light = page.run(colour)
    page.emulate(prefers_color_scheme="dark")
    time.sleep(0.5)
    assert page.run(colour) != light
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert page.log() == []


def test_a_phone_scrolls_only_downwards(page: Browser) -> None:
    page.resize(390, 800)
    time.sleep(0.5)
    assert page.run("return document.documentElement.scrollWidth") <= 390
    for plot in page.run(PLOTS):
        assert plot["width"] <= 390, plot
    assert page.log() == []


def test_an_error_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    """The tests above can fail: a broken page leaves its trace in the log."""
    (tmp_path / "broken.html").write_text(
        "<html data-ready=true><script>nothing.defined()</script></html>", encoding="utf-8"
    )
    browser.log()
    browser.open((tmp_path / "broken.html").as_uri())
    assert any("nothing is not defined" in line for line in browser.log())
