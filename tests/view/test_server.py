"""The viewer as it is served: who gets in, and what a browser does with it."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from astropy.table import Table

import probablend

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

_PATIENCE = 300  # seconds, for machines that have other things to do


@pytest.fixture(scope="module")
def address(folder):
    """A running viewer; at the end Ctrl-C must stop it cleanly."""
    source = Path(probablend.__file__).parents[1]
    viewer = subprocess.Popen(
        [sys.executable, "-m", "probablend.cli", "view", folder, "--no-browser"],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(source)},
    )  # fmt: skip
    yield next(line.strip() for line in viewer.stdout if line.startswith("http"))
    viewer.send_signal(signal.SIGINT)
    assert viewer.wait(_PATIENCE) == 0
    viewer.stdout.close()


@pytest.fixture
def ask(address):
    """Function that asks the server, with the cookie unless told otherwise."""
    where = urlsplit(address)
    cookie = f"probablend-{where.port}={where.query.removeprefix('token=')}"

    def request(path, method="GET", **headers):
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=_PATIENCE)
        connection.request(method, path, headers={"Cookie": cookie} | headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    return request


def test_only_this_machine_is_served_and_only_with_the_token(ask, address):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{40,}", address)
    for path in ("/", "/info", "/static/app.js", "/tiles/p_blend/0/0_0.png", "/?token=wrong"):
        assert ask(path, Cookie="")[0].status == 403
        assert ask(path)[0].status == 200
        assert ask(path, Host="evil.example")[0].status == 421
    assert ask("/info", Host="localhost:9999")[0].status == 200  # through a tunnel
    assert ask("/info", Cookie="probablend-1=x; =;")[0].status == 403
    assert ask("/info", "POST")[0].status == 405


def test_the_first_address_gives_a_cookie_for_this_site_alone(ask, address):
    answer, page = ask(f"/?{urlsplit(address).query}", Cookie="")
    said = answer.getheader("Set-Cookie")
    assert "HttpOnly" in said
    assert "SameSite=Strict" in said
    assert answer.getheader("Content-Security-Policy").startswith("default-src 'self';")
    assert answer.getheader("Cache-Control") == "no-store"
    assert b"http://" not in page
    assert b"https://" not in page


def test_what_is_not_there_is_said_in_one_sentence(ask):
    for path, status, said in (
        ("/tiles/nonsense/0/0_0.png", 404, "nonsense"),
        ("/tiles/p_blend/0/9_9.png", 404, "no tile 9, 9"),
        ("/source/123456", 404, "no source 123456"),
        ("/selection.exe?threshold=1", 404, "no export"),
        ("/selection.fits?threshold=high", 400, "threshold must be a number"),
        ("/pixel?x=1e9&y=0", 400, "outside the image"),
        ("/goto?q=here&frame=sky", 400, "is wanted"),
    ):
        answer, body = ask(path)
        assert answer.status == status
        assert said in json.loads(body)["error"]
    assert ask("/static/../server.py")[0].status == 404


def test_a_pixel_is_read_with_its_place_in_the_sky(ask):
    said = json.loads(ask("/pixel?x=99&y=99")[1])
    assert (said["ra"], said["dec"]) == pytest.approx((150.1, 2.2))
    assert json.loads(ask("/pixel?x=160&y=30")[1])["p_galaxy"] is None


# ---- the browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(
            executable_path=program,
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
            timeout=1000 * _PATIENCE,
        )
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, address):
    """Function that opens the viewer; whatever goes wrong in the page fails the test."""
    wrong, contexts = [], []

    def open_it(**how):
        context = browser.new_context(viewport={"width": 1200, "height": 800}, **how)
        context.set_default_timeout(1000 * _PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda r: wrong.append(r.url) if r.status >= 400 else None)
        inside = address.split("?")[0]
        page.on(
            "request",
            lambda r: None if r.url.startswith((inside, "blob:")) else wrong.append(r.url),
        )
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []


def shown(page):
    """What the map looks like."""
    page.wait_for_timeout(800)
    return page.locator("main").screenshot()


@pytest.mark.slow
def test_a_browser_zooms_toggles_filters_opens_and_exports(open_page, folder):
    table = Table.read(folder / "catalog.fits")
    p = np.asarray(table["p_blend"], dtype=float)
    page = open_page()
    assert "token" not in page.url
    assert "field.fits" in page.title()

    pictures = [shown(page)]
    page.click("#zoom-in")
    pictures.append(shown(page))
    for layer in ("P_GALAXY", "P_BLEND", "entropy", "samples"):
        page.get_by_label(layer, exact=True).check()
        pictures.append(shown(page))
    page.keyboard.press(".")
    page.locator("#sample-number", has_text="2 of 4").wait_for()
    page.click("#sample-play")
    page.locator("#sample-number", has_text="4 of 4").wait_for()
    page.click("#sample-play")
    assert len(set(pictures)) == len(pictures)

    # What the page says of a selection is what the catalogue says.
    for threshold in (round(0.8 * p.max(), 2), 0.1):
        page.locator("#threshold").fill(str(threshold))
        chosen = p > threshold
        said = page.locator("#summary").text_content()
        assert said.startswith(f"{chosen.sum()} of {len(p)} sources")
        purity, completeness = p[chosen].mean(), p[chosen].sum() / p.sum()
        assert f"purity {purity:.3f}, completeness {completeness:.3f}" in said
    for kind in ("fits", "csv", "reg"):
        with page.expect_download() as download:
            page.click(f"#export-{kind}")
        assert download.value.suggested_filename == f"selection.{kind}"
        if kind != "reg":
            path = folder.parent / f"selection.{kind}"
            download.value.save_as(path)
            np.testing.assert_array_equal(Table.read(path)["id"], table["id"][p > 0.1])

    # A position that is gone to is in the centre, where a click opens the galaxy.
    k = int(np.argmax(table["flux"]))
    page.keyboard.press("g")
    page.select_option("#goto-frame", "sky")
    page.fill("#goto-text", f"{table['ra'][k]:.7f} {table['dec'][k]:.7f}")
    page.keyboard.press("Enter")
    page.locator("#status", has_text="At x").wait_for()
    page.wait_for_timeout(1500)
    page.locator("#map").click()
    page.get_by_role("heading", name=f"Galaxy {table['id'][k]}", exact=True).wait_for()
    assert page.locator("#card-plot .dot").count() == 6 * 16
    page.locator("#pixel", has_text="p_blend").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()


@pytest.mark.slow
def test_the_keyboard_is_enough_and_motion_is_respected(open_page, folder):
    table = Table.read(folder / "catalog.fits")
    first = table["id"][np.argsort(-table["p_blend"], kind="stable")[0]]
    page = open_page(reduced_motion="reduce")
    assert page.locator("#sample-play").is_disabled()
    page.keyboard.press("Tab")
    assert page.locator(":focus").text_content() == "Skip the map"
    page.keyboard.press("Tab")
    assert page.locator(":focus").get_attribute("role") == "application"
    page.keyboard.press("n")
    heading = page.get_by_role("heading", name=f"Galaxy {first}", exact=True)
    heading.wait_for()
    assert heading.evaluate("node => node === document.activeElement")
    page.keyboard.press("Escape")
    assert page.locator(":focus").get_attribute("role") == "application"
    page.wait_for_timeout(500)
    page.keyboard.press("Enter")  # the map is centred on it
    page.locator("#card").wait_for()
    page.keyboard.press("3")
    assert page.get_by_label("P_BLEND", exact=True).is_checked()
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("1")
    assert page.get_by_label("P_BLEND", exact=True).is_checked()
