"""The pages in a real browser (Debian's chromium and chromium-driver), which reaches nothing but this machine.

IMG2IMG_EXTERNAL=1 python -m pytest tests/external/test_apps.py
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from tests.denoise_tasks.conftest import psnr
from tests.external.environments import CACHE, PROJECT, only_if_asked

PINNED = ("gradio==6.31.0", "selenium==4.51.0")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server --window-size=1280,900"
)
WAIT_S = 240  # on a machine that does other work

pytestmark = only_if_asked


@pytest.fixture(scope="module")
def environment() -> tuple[Path, Path]:
    """The interpreter and the packages of an environment with gradio and selenium, which sees this one's too."""
    folder = CACHE / "-".join(PINNED)
    scheme = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    seen = packages / "seen.pth"
    if not seen.exists():
        venv.create(folder, with_pip=False, clear=True)
        # As pinned here, but for Pillow, of which gradio takes none beyond 12.
        pins = (PROJECT / "requirements/runtime.txt").read_text().splitlines()
        limits = folder / "limits.txt"
        limits.write_text("\n".join(line for line in pins if not line.startswith("pillow")))
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
        subprocess.run([*map(str, pip), "-c", str(limits), *PINNED], check=True)
    seen.write_text(f"{PROJECT}\n{sysconfig.get_path('purelib')}\n")
    return python, packages


class Page:
    """A page that is served and shown."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def wait(self, found: Callable[[], Any]) -> Any:
        """What `found` gives as soon as it gives something."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                if value := found():
                    return value
            except Exception as error:  # while the page is being drawn
                last = error
            time.sleep(0.3)
        raise AssertionError(f"waited in vain: {locals().get('last')}")

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def upload(self, *files: Path) -> None:
        """Choose files, in the place of those that were there."""
        for button in self.all("button[aria-label='Remove this file'], button[aria-label='Clear']"):
            button.click()
        self.wait(lambda: self.all("input[type=file]"))[0].send_keys("\n".join(map(str, files)))

    def told(self) -> str:
        return self.all("#told textarea")[0].get_property("value")

    def shown(self, selector: str) -> list[tuple[int, int]]:
        """The sizes of the pictures that were fetched and decoded."""
        size = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
        return [tuple(self.browser.execute_script(size, one)) for one in self.all(selector)]

    def fetched_elsewhere(self) -> list[str]:
        names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        return [n for n in self.browser.execute_script(names) if not n.startswith(self.address)]


@pytest.fixture
def open_page(
    environment: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Page]]:
    """Serves a module's page and opens it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver")
    python, packages = environment
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    (tmp_path / "downloads").mkdir()
    folder = str(tmp_path / "downloads")
    options.add_experimental_option("prefs", {"download.default_directory": folder})
    browser = Chrome(options=options, service=Service(driver))
    servers: list[subprocess.Popen[bytes]] = []

    def open_(module: str) -> Page:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [str(python), "-m", module, "--port", str(port)]
        servers.append(subprocess.Popen(words, cwd=tmp_path))
        page = Page(browser, f"http://127.0.0.1:{port}/")

        def there() -> bool:
            assert servers[0].poll() is None
            browser.get(page.address)
            return True

        page.wait(there)
        return page

    yield open_
    browser.quit()
    for server in servers:
        server.terminate()
        server.wait(60)


def test_a_picture_is_denoised_compared_and_downloaded(open_page, tmp_path):
    clean = photographs.chelsea()[50:250, 100:300]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    exif = Image.Exif()
    exif[0x010E] = "A cat"
    noisy, broken = tmp_path / "cat.jpg", tmp_path / "broken.jpg"
    Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8)).save(
        noisy, quality=95, exif=exif
    )
    broken.write_bytes(noisy.read_bytes()[:3000])
    page = open_page("denoise_tasks.app")

    page.upload(noisy)
    assert "cat.jpg: noise of about sigma 2" in page.wait(page.told)
    page.wait(lambda: page.shown("#slider img") == [(200, 200)] * 2)

    handle, before = page.all("#slider .inner")[0], page.all("#slider img.fixed")[0]
    clip = before.get_attribute("style")
    from selenium.webdriver import ActionChains

    ActionChains(page.browser).drag_and_drop_by_offset(handle, 150, 0).perform()
    assert "50%" in clip
    page.wait(lambda: before.get_attribute("style") != clip)

    page.all("#result")[0].click()
    result = tmp_path / "downloads/cat.jpg"
    page.wait(result.exists)
    with Image.open(result) as picture:
        assert picture.format == "JPEG"
        assert picture.getexif()[0x010E] == "A cat"
        after = np.asarray(picture)
    before_psnr = psnr(np.asarray(Image.open(noisy)) / 255, clean / 255)
    assert psnr(after / 255, clean / 255) > before_psnr + 5

    page.upload(broken)
    line = page.wait(lambda: "error" in page.told() and page.told())
    assert line.startswith("error: broken.jpg: truncated or broken picture")
    assert "\n" not in line
    assert not page.all("#slider img")
    assert page.fetched_elsewhere() == []


def test_a_scan_is_reconstructed_slice_by_slice(open_page, tmp_path, tiny_data):
    scan = next(tiny_data("singlecoil").glob("singlecoil_val/*.h5"))
    broken = tmp_path / "broken.h5"
    broken.write_bytes(scan.read_bytes()[:3000])
    page = open_page("fastmri_plugin.app")

    page.upload(scan)
    assert f"{scan.name}: fully sampled" in page.wait(page.told)
    page.wait(lambda: len(page.shown("#views img")) == 2 and min(page.shown("#views img"))[0] > 20)

    page.all("input[type=radio][value='4']")[0].click()
    page.wait(lambda: len(page.shown("#views img")) == 5 and "mri-brain" in page.told())
    assert "target" in page.all("#views")[0].text
    first = [one.get_attribute("src") for one in page.all("#views img")]

    number = page.all("#slice input[type=number]")[0]
    number.clear()
    number.send_keys("0\n")
    page.wait(lambda: page.all("#views img")[3].get_attribute("src") not in first)

    page.upload(broken)
    line = page.wait(lambda: "error" in page.told() and page.told())
    assert line.startswith("error: broken.h5: ")
    assert "\n" not in line
    assert page.fetched_elsewhere() == []
