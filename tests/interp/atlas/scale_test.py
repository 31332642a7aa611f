"""An atlas of 16,384 features: how large it is, what building it takes, and how fast it opens."""

import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers.large_run import LargeRun, make_workdir
from tests.helpers.paths import ROOT

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.drill
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CHROMIUM may name one")
def test_a_large_atlas_is_small_and_quick(tmp_path, capsys):
    sync_api = pytest.importorskip("playwright.sync_api")
    make_workdir(tmp_path, LargeRun())
    begin = time.perf_counter()
    command = ["launch.atlas", f"--config=tests/helpers/large_run.py:{tmp_path}", f"--workdir={tmp_path}"]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    built = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # GiB
    size = sum(path.stat().st_size for path in (tmp_path / "atlas").rglob("*") if path.is_file())
    assert size < 300e6 and peak < 3
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        begin = time.perf_counter()
        page.goto(f"file://{tmp_path}/atlas/index.html")
        page.wait_for_selector(".tiles")
        first = time.perf_counter() - begin
        times = []
        for feature in range(0, 16384, 819):
            begin = time.perf_counter()
            page.evaluate("(i) => { location.hash = '#/feature/' + i; }", feature)
            page.wait_for_selector(f"h1:has-text('{feature}  ')")
            times.append(time.perf_counter() - begin)
            assert page.locator(".context, .picture").count() > 30
        begin = time.perf_counter()
        page.locator("#search").fill("bast")
        page.wait_for_selector(".row")
        found = time.perf_counter() - begin
        browser.close()
    with capsys.disabled():
        print(f"\natlas of 16,384 features: {size / 1e6:.0f} MB, built in {built:.0f} s with {peak:.1f} GiB")
        print(f"first view {first:.2f} s, a feature {np.mean(times):.2f} s (at most {max(times):.2f})")
        print(f"a search {found:.2f} s")
