"""A real browser to look at a page with: headless Chromium."""

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const seen = frame.contentWindow.getComputedStyle(page.body);
  const told = {
    width: root.clientWidth, scrolls: root.scrollWidth,
    broken: [...page.images].filter(image => !image.complete || !image.naturalWidth).length,
    images: page.images.length, tables: page.querySelectorAll("table").length,
    text: page.body.innerText, ink: seen.color, paper: seen.backgroundColor,
    loaded: frame.contentWindow.performance.getEntriesByType("resource")
      .filter(entry => !entry.name.startsWith("data:")).length,
  };
  const out = document.createElement("pre");
  out.id = "told"; out.textContent = JSON.stringify(told); document.body.append(out);
});
</script>
"""


def chromium() -> str:
    """Its path. Without one the test is skipped, or fails where REQUIRE_BROWSER=1 says that there must be one."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    reason = f"none of {', '.join(NAMES)} is installed"
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, and {reason}")
    pytest.skip(reason)


def look(page: Path, folder: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """What the browser makes of a page in a frame of this width, without any network."""
    browser = chromium()
    frame = f'<iframe style="width:{width}px;height:2000px;border:0" srcdoc="{escape(page.read_text())}"></iframe>'
    wrapper = folder / f"wrapper-{width}-{dark}.html"
    wrapper.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}{MEASURE}</body>')
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]
    done = subprocess.run([browser, *options, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told
