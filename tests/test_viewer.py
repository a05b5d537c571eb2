"""The page: what is in the file, and what a browser makes of it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bilinear
from bilinear.cli import main
from bilinear.errors import ConfigError
from bilinear.fourier import frequency_shares
from bilinear.interactions import logit_table
from bilinear.results import Results
from bilinear.viewer import colour_map, page_data, weights_of, write_page

P = 11
SWEEP = ["--fused", "--p", "11", "--widths", "12,9,7,5,3,1", "--seeds", "2", "--steps", "300"]
SWEEP += ["--remainders", "3,0"]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser_test = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("viewer") / "run"
    assert main([*SWEEP, "--out", str(out)]) == 0
    return bilinear.load_results(out)


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(results, tmp_path_factory.mktemp("page") / "a page.html")


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_file_is_whole_and_asks_for_nothing(page: Path, results: Results) -> None:
    text = page.read_text("utf-8")
    assert "{{" not in text.replace("{{}}", "")
    assert not re.search(r"https?://|<link[^>]+href=\"(?!data:)|\bsrc=|@import|fetch\(", text)
    data = data_of(page)
    assert [(m["d"], m["seed"]) for m in data["models"]] == [tuple(job) for job in results.jobs]
    assert data["dtype"] == "float32"
    assert [f.name for f in page.parent.iterdir()] == [page.name]


def test_frequencies_and_errors_are_those_of_the_results(page: Path, results: Results) -> None:
    for model in data_of(page)["models"]:
        weights = weights_of(results.models[model["d"], model["seed"]])
        np.testing.assert_allclose(model["shares"], frequency_shares(*weights), atol=6e-5)
        table = logit_table(*(w.double() for w in weights))
        c = torch.arange(P)
        label = (c[:, None] + c) % P
        right = table.gather(0, label[None])[0]
        margin = right - table.scatter(0, label[None], -torch.inf).amax(0)
        assert model["wrong"] == int((margin <= 0).sum())
        assert model["margin"] == pytest.approx(margin.min().item(), rel=1e-3, abs=1e-4)


def test_seeds_can_be_chosen_and_are_checked(results: Results) -> None:
    assert {m["seed"] for m in page_data(results, [1])["models"]} == {1}
    with pytest.raises(ConfigError, match=r"some of \[0, 1\], got \[7\]"):
        page_data(results, [1, 7])


def test_too_many_weights_are_rounded_then_left_out(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 2 * sum((12, 9, 7, 5, 3, 1)) * 5 * P
    monkeypatch.setattr("bilinear.viewer._MOST_FLOAT32_BYTES", 4 * n - 1)
    rounded = page_data(results)
    assert rounded["dtype"] == "float16"
    assert "float16" in rounded["about"]
    monkeypatch.setattr("bilinear.viewer._MOST_BYTES", 2 * n - 1)
    monkeypatch.setattr("bilinear.viewer._MOST_FLOAT32_BYTES", 0)
    fewer = page_data(results)
    assert {m["seed"] for m in fewer["models"]} == {0}
    assert "1 more" in fewer["about"]
    with pytest.raises(ConfigError, match="expected fewer"):
        page_data(results, [0, 1])


def test_colours_join_their_stops_through_white() -> None:
    colours = colour_map(("000000", "ffffff", "ff0000"), 5)
    assert colours.tolist()[::2] == [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    assert colours.dtype == np.uint8


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    quiet = "disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (*quiet.split(), "headless=new", "no-sandbox", "disable-component-update"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_argument("--window-size=1200,1400")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def open_page(browser: Any, page: Path, hash_part: str = "") -> None:
    browser.get("about:blank")
    browser.get(page.as_uri() + hash_part)


def shown_width(browser: Any) -> int:
    return int(browser.find_element("id", "shown-width").text)


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def pixels(browser: Any, n: int) -> np.ndarray:
    flat = browser.execute_script(
        "const c = document.getElementById('matrix');"
        "const all = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return [c.width, c.height, ...all.data]"
    )
    assert flat[:2] == [n, n]
    return np.array(flat[2:]).reshape(n, n, 4)[..., :3]


def expected_pixels(matrix: torch.Tensor, limit: float, colours: list[int]) -> np.ndarray:
    unit = (0.5 + matrix.double().numpy() / (2 * limit)).clip(0, 1)
    return np.array(colours).reshape(-1, 3)[np.floor(unit * 256 + 0.5).astype(int)]


@browser_test
def test_keys_and_mouse_move_the_slider(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    open_page(browser, page)
    assert shown_width(browser) == 12
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown_width(browser) == 7
    press(browser, Keys.ARROW_LEFT)
    assert shown_width(browser) == 9
    assert "d=9" in browser.current_url
    slider = browser.find_element("id", "width")
    ActionChains(browser).move_to_element(slider).click().perform()
    assert shown_width(browser) in (7, 5)
    right_end = slider.size["width"] // 2 - 9
    ActionChains(browser).click_and_hold().move_to_element_with_offset(
        slider, right_end, 0
    ).release().perform()
    assert shown_width(browser) == 1
    press(browser, Keys.HOME)
    assert shown_width(browser) == 12


@browser_test
@pytest.mark.parametrize("width", [12, 1])
def test_the_matrix_on_the_screen_is_the_stored_one(
    browser: Any, page: Path, results: Results, width: int
) -> None:
    data = data_of(page)
    open_page(browser, page, f"#d={width}&seed=1&c=3")
    stored = results.interactions[width, 1][0]
    limit = data["limits"]["1"]["q"]
    difference = pixels(browser, 2 * P) - expected_pixels(stored, limit, data["diverging"])
    # A value on the border of two of the 257 colours may fall to either.
    assert np.abs(difference).max() <= 8
    other = expected_pixels(results.interactions[width, 1][1], limit, data["diverging"])
    assert np.abs(pixels(browser, 2 * P) - other).max() > 50
    open_page(browser, page, f"#d={width}&seed=1&c=3&view=logits")
    table = logit_table(*weights_of(results.models[width, 1]), outputs=[3])[0]
    limit = data["limits"]["1"]["logits"]
    difference = pixels(browser, P) - expected_pixels(table, limit, data["diverging"])
    assert np.abs(difference).max() <= 8


@browser_test
def test_the_page_computes_what_the_library_does(
    browser: Any, page: Path, results: Results
) -> None:
    for width, seed in ((12, 0), (5, 1), (1, 0)):
        open_page(browser, page, f"#d={width}&seed={seed}&c=0")
        q = results.interactions[width, seed][1].double().numpy()
        values, vectors, size = browser.execute_script(
            "return [shown.eigen.values, shown.eigen.values.map((_, i) =>"
            "Array.from(shown.eigen.vector(i))), Array.from(shown.cross.size)]"
        )
        values, vectors = np.array(values), np.array(vectors)
        scale = np.abs(values).max()
        np.testing.assert_allclose(values, np.linalg.eigvalsh(q)[::-1], atol=1e-5 * scale)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(2 * P), atol=1e-9)
        np.testing.assert_allclose((vectors.T * values) @ vectors, q, atol=1e-5 * scale)
        fourier = np.abs(np.fft.fft2(2 * q[:P, P:])) / P**2
        half = P // 2
        wanted = fourier[: half + 1][:, np.arange(-half, half + 1) % P]
        np.testing.assert_allclose(
            np.array(size).reshape(half + 1, -1), wanted, atol=1e-5 * wanted.max()
        )


@browser_test
def test_play_hover_link_and_themes(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(browser, page, "#d=5&seed=1&c=2&view=logits&scale=own")
    assert shown_width(browser) == 5
    assert browser.find_element("id", "scale").get_attribute("value") == "own"
    assert "remainder 2" in browser.find_element("id", "matrix-title").text
    browser.find_element("id", "play").click()
    WebDriverWait(browser, 5).until(lambda b: shown_width(b) == 1)
    ActionChains(browser).move_to_element(browser.find_element("id", "matrix")).perform()
    tip = browser.find_element("id", "tip").text
    i, j = map(int, re.findall(r"[ab] = (\d+)", tip))
    table = browser.execute_script("return Array.from(shown.table)")
    said = float(tip.splitlines()[-1].replace("−", "-"))
    assert said == pytest.approx(table[i * P + j], rel=2e-3)
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    browser.find_element("id", "theme").click()
    after = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert before != after


@browser_test
def test_nonsense_in_the_link_is_ignored(browser: Any, page: Path) -> None:
    open_page(browser, page, "#d=99&seed=-4&c=<b>&view=x&scale")
    assert shown_width(browser) == 12


@browser_test
def test_it_is_quick_silent_and_fits_a_phone(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("browser")
    browser.get_log("performance")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    open_page(browser, page)
    paint = WebDriverWait(browser, 5).until(
        lambda b: b.execute_script(
            "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
    )
    assert paint < 2000
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    times = browser.execute_script(
        "return Array.from({length: 30}, (_, i) => { step(i % 2 ? -1 : 1); return lastDraw; })"
    )
    assert np.median(times) < 50
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert all(url.startswith(("file:", "data:", "about:")) for url in asked)
