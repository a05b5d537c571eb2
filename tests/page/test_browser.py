"""The page in a real browser: its controls, pixels and address, and that it loads nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bilinear
from bilinear.cli.commands import main
from bilinear.page.write import write_page
from bilinear.reading.interactions import logit_table
from bilinear.results.sweep_results import Results

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"
)

P = 7
SWEEP = "--fused --p 7 --widths 8,6,4,2,1 --seeds 2 --steps 80 --remainders 3,0"
WIDE, TALL = 1300, 1600


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("browser") / "run"
    assert main([*SWEEP.split(), "--out", str(out)]) == 0
    return bilinear.load_results(out)


@pytest.fixture(scope="module")
def page(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "a page.html"
    write_page(results, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ["headless=new", "disable-gpu", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-dev-shm-usage", f"window-size={WIDE},{TALL}"]
    flags += [f"user-data-dir={tmp_path_factory.mktemp('profile')}"]
    if os.geteuid() == 0:
        flags += ["no-sandbox"]  # Chromium's own sandbox refuses to run as root
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = _started(options)
    yield driver
    driver.quit()


def _started(options: Any, tries: int = 3) -> Any:
    """Try again where Chromium's first start, from a slow disk, takes over the driver's minute."""
    from selenium.common.exceptions import SessionNotCreatedException

    try:
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    except SessionNotCreatedException:
        if tries == 1:
            raise
        return _started(options, tries - 1)


def open_page(browser: Any, page: Path, hash_part: str = "") -> None:
    browser.get("about:blank")  # a change of the hash alone does not load the page again
    browser.get(page.as_uri() + hash_part)


def shown_width(browser: Any) -> int:
    return int(browser.find_element("id", "width").text.removeprefix("d = "))


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def wait_for(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 5, poll_frequency=0.05).until(condition)


def pixels(browser: Any, parent: str = "matrix") -> np.ndarray:
    """The colours on a heat map's canvas, (rows, columns, 3)."""
    width, height, *flat = browser.execute_script(
        f"const c = document.querySelector('#{parent} canvas');"
        "const all = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return [c.width, c.height, ...all.data]"
    )
    return np.array(flat).reshape(height, width, 4)[..., :3]


LIGHT = ("053061", "2a71b2", "8fc3de", "ffffff", "f6a582", "c53a3f", "67001f")


def coloured(matrix: np.ndarray, limit: float) -> np.ndarray:
    """The page's light diverging colours of values from −limit to limit, computed independently."""
    stops = np.array([[int(s[i : i + 2], 16) for i in (0, 2, 4)] for s in LIGHT])
    unit = (matrix.astype(float) / limit).clip(-1, 1) / 2 + 0.5
    at = np.linspace(0, 1, len(LIGHT))
    return np.stack([np.interp(unit, at, stops[:, i]) for i in range(3)], axis=-1)


def meets_no_pair() -> np.ndarray:
    """Entries of a full Q that change no logit: those of aa and bb off their diagonals."""
    block = np.arange(2 * P) < P
    return (block[:, None] == block) & ~np.eye(2 * P, dtype=bool)


def drawn(matrix: np.ndarray, limit: float) -> np.ndarray:
    """What the page draws of a full Q: pale grey where no pair meets it."""
    unmet = meets_no_pair()
    strength = (np.abs(matrix[unmet]) / limit).clip(0, 1)[:, None]
    image = coloured(matrix, limit)
    image[unmet] = 255 - strength * (255 - np.array([0xD0, 0xD0, 0xCE]))
    return image


def assert_shows(browser: Any, expected: np.ndarray, heat: str = "matrix") -> None:
    shown = pixels(browser, heat)
    assert shown.shape == expected.shape
    # 511 levels between 7 stops: a level is at most 2.1 of a channel's 255 wide, and rounded.
    assert np.abs(shown - expected).max() <= 2


def limits(browser: Any, view: str) -> list[float]:
    data = browser.execute_script("return document.getElementById('data').textContent")
    return json.loads(data)["limits"][view]


def test_keyboard_moves_the_slider(browser: Any, page: Path) -> None:
    from selenium.webdriver import Keys

    open_page(browser, page)
    assert shown_width(browser) == 8
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown_width(browser) == 4
    press(browser, Keys.ARROW_LEFT)
    assert shown_width(browser) == 6
    press(browser, Keys.END, Keys.ARROW_RIGHT)
    assert shown_width(browser) == 1
    press(browser, Keys.HOME)
    assert shown_width(browser) == 8
    press(browser, Keys.ARROW_DOWN)
    assert "remainder 0" in browser.find_element("id", "matrix-title").text
    slider = browser.find_element("id", "slider")
    slider.send_keys(Keys.ARROW_RIGHT)  # with the slider in focus too, one step and not two
    assert shown_width(browser) == 6
    assert slider.get_attribute("value") == "1"


def test_mouse_moves_the_slider(browser: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains

    open_page(browser, page)
    slider = browser.find_element("id", "slider")
    ActionChains(browser).move_to_element(slider).click().perform()
    assert shown_width(browser) == 4
    right_end = slider.size["width"] // 2 - 9
    drag = ActionChains(browser).move_to_element(slider).click_and_hold()
    drag.move_by_offset(right_end, 0).release().perform()
    assert shown_width(browser) == 1


def test_the_matrix_on_the_screen_is_the_stored_one(
    browser: Any, page: Path, results: Results
) -> None:
    for d, seed, at in ((8, 0, 0), (4, 1, 1), (1, 1, 0)):
        c = results.config.remainders[at]
        open_page(browser, page, f"#d={d}&seed={seed}&c={c}&view=full")
        stored = results.interactions[d, seed].numpy()
        assert_shows(browser, drawn(stored[at], limits(browser, "full")[at]))
        if d > 1:  # one unit's matrices differ by a factor alone
            other = drawn(stored[1 - at], limits(browser, "full")[at])
            assert np.abs(pixels(browser) - other).max() > 50
        assert "Full interaction matrix Q" in browser.find_element("id", "matrix-title").text
        press(browser, "m")
        table = logit_table(results.models[d, seed], c).numpy()
        assert_shows(browser, coloured(table, limits(browser, "functional")[at]))
        assert "Functional table" in browser.find_element("id", "matrix-title").text


def test_each_width_may_have_its_own_scale(browser: Any, page: Path, results: Results) -> None:
    open_page(browser, page, "#d=2&seed=0&c=3&view=full")
    stored = results.interactions[2, 0][0].numpy()
    press(browser, "c")
    assert_shows(browser, drawn(stored, np.abs(stored)[~meets_no_pair()].max()))
    assert "this width's largest" in browser.find_element("id", "matrix-note").text
    press(browser, "c")
    assert_shows(browser, drawn(stored, limits(browser, "full")[0]))


def test_the_fourier_picture_is_the_dft_of_the_cross_block(
    browser: Any, page: Path, results: Results
) -> None:
    open_page(browser, page, "#d=8&seed=1&c=3")
    shown = browser.execute_script("return Array.from(dft.values)")
    q = results.interactions[8, 1][0].double().numpy()
    expected = np.abs(np.fft.fftshift(np.fft.fft2(2 * q[:P, P:]))) / P**2
    np.testing.assert_allclose(np.reshape(shown, (P, P)), expected, atol=1e-5 * expected.max())


def test_the_address_keeps_what_is_shown(browser: Any, page: Path) -> None:
    open_page(browser, page, "#d=4&seed=1&c=0&view=functional&scale=own")
    assert shown_width(browser) == 4
    chosen = {"remainder": "0", "seed": "1", "view": "functional", "scale": "own"}
    for name, value in chosen.items():
        assert browser.find_element("id", name).get_attribute("value") == value
    press(browser, "m")
    wait_for(browser, lambda b: b.current_url.endswith("#d=4&c=0&seed=1&view=full&scale=own"))
    browser.execute_script("location.hash = 'd=2'")
    wait_for(browser, lambda b: shown_width(b) == 2)
    strip = pixels(browser, "ticks")  # of seed 1
    browser.execute_script("location.hash = 'seed=0'")
    wait_for(browser, lambda b: not np.array_equal(pixels(b, "ticks"), strip))
    open_page(browser, page, "#d=99&seed=-4&c=<b>&view=x&scale")
    assert shown_width(browser) == 8


def test_play_goes_down_to_the_last_width(browser: Any, page: Path) -> None:
    open_page(browser, page, "#d=4")
    play = browser.find_element("id", "play")
    play.click()
    assert play.get_attribute("aria-label") == "stop"
    wait_for(browser, lambda b: shown_width(b) == 1)
    wait_for(browser, lambda b: play.get_attribute("aria-label") == "play the widths")
    press(browser, " ")  # from the end, it begins again
    wait_for(browser, lambda b: shown_width(b) in (8, 6))
    press(browser, " ")
    assert play.get_attribute("aria-label") == "play the widths"


def test_hover_says_the_value(browser: Any, page: Path, results: Results) -> None:
    from selenium.webdriver import ActionChains

    open_page(browser, page, "#d=8&seed=0&c=3&view=full")
    canvas = browser.find_element("css selector", "#matrix canvas")
    ActionChains(browser).move_to_element_with_offset(canvas, 4, 4).perform()
    said = browser.find_element("css selector", "#matrix .hover").text
    place, _, value = said.partition(" = ")
    assert place == "Q[b=0, b=0]"
    stored = results.interactions[8, 0][0][P, P].item()
    assert float(value.replace("−", "-")) == pytest.approx(stored, rel=5e-3)


def test_it_loads_nothing_logs_nothing_and_fits_a_phone(browser: Any, page: Path) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for theme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        open_page(browser, page)
        wait_for(browser, lambda b: b.find_elements("css selector", "#accuracy svg"))
        assert browser.execute_script("return document.documentElement.dataset.theme") == theme
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    press(browser, "m", "c", " ", "m")
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    assert all(url.startswith(("file:", "data:", "about:")) for url in asked)


def test_nothing_moves_while_the_slider_does(browser: Any, page: Path) -> None:
    for hash_part in ("", "#view=full", "#beside=6", "#scale=own"):
        open_page(browser, page, hash_part)
        places = browser.execute_script(
            "return widths.map((d) => { choose({ d });"
            " const b = matrix.canvas.getBoundingClientRect();"
            " return [b.left, b.top, b.width, b.height, document.documentElement.scrollHeight]; })"
        )
        assert len({tuple(place) for place in places}) == 1


def test_cells_are_whole_pixels_and_the_matrix_is_the_largest_picture(
    browser: Any, page: Path
) -> None:
    for view, columns in (("functional", P), ("full", 2 * P)):
        open_page(browser, page, f"#view={view}")
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('.frame')]"
            ".map((f) => [f.clientWidth, f.clientHeight])"
        )
        hero, others = sizes[0], sizes[1:]
        assert hero[0] % columns == 0
        assert hero[0] == hero[1] >= 500
        assert all(hero[0] * hero[1] > 2 * w * h for w, h in others)


def test_two_widths_stand_side_by_side(browser: Any, page: Path, results: Results) -> None:
    open_page(browser, page, "#d=4&seed=1&c=0&view=full")
    press(browser, "b")
    browser.execute_script("choose({ d: 8 })")
    scale = limits(browser, "full")[1]
    for heat, d in (("matrix", 8), ("other", 4)):
        assert_shows(browser, drawn(results.interactions[d, 1][1].numpy(), scale), heat)
    boxes = browser.execute_script(
        "return [matrix, other].map((h) => h.canvas.getBoundingClientRect().toJSON())"
    )
    assert boxes[0]["top"] == boxes[1]["top"]
    assert boxes[0]["right"] < boxes[1]["left"]
    wait_for(browser, lambda b: b.current_url.endswith("&beside=4"))


def test_wrong_pairs_are_those_of_the_model(browser: Any, page: Path, results: Results) -> None:
    table = results.table.set_index(["d_hidden", "seed"])["full_acc"]
    for d in (8, 2, 1):
        open_page(browser, page, f"#d={d}&seed=1")
        shown = browser.execute_script("return Array.from(wrong.values)")
        said = logit_table(results.model(d, 1)).argmax(dim=0).numpy()
        a = np.arange(P)
        expected = said != (a[:, None] + a) % P
        np.testing.assert_array_equal(np.reshape(shown, (P, P)), expected)
        assert expected.sum() == round((1 - table[d, 1]) * P * P)


def test_what_is_saved_is_what_is_shown(browser: Any, page: Path, results: Results) -> None:
    open_page(browser, page, "#d=6&seed=0&c=3")
    rows = browser.execute_script("return table()").strip().split("\n")
    saved = np.array([[float(value) for value in row.split(",")] for row in rows])
    np.testing.assert_allclose(
        saved, logit_table(results.model(6), 3).numpy(), rtol=2e-4, atol=1e-4
    )
    width, height = browser.execute_script("const c = picture(); return [c.width, c.height]")
    assert width > 1000
    assert height > width


def test_the_learning_curve_is_the_recorded_one(browser: Any, page: Path, results: Results) -> None:
    open_page(browser, page, "#d=4&seed=1")
    steps, train, val = np.reshape(
        browser.execute_script("return Array.from(current().history)"), (3, -1)
    )
    history = results.histories[4, 1].set_index("step").loc[steps.astype(int)]
    np.testing.assert_allclose(train, history["train_loss"], rtol=1e-6)
    np.testing.assert_allclose(val, history["val_loss"], rtol=1e-6)
    assert steps[-1] == results.histories[4, 1]["step"].iloc[-1]


def test_what_stays_on_a_phones_screen_is_a_tenth_of_it(browser: Any, page: Path) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    open_page(browser, page)
    height = browser.execute_script("return document.querySelector('.bar-on-top').offsetHeight")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert height <= 84


def test_a_narrowed_models_units_keep_their_rows(browser: Any, page: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    options = "--fused --narrow --drop norm --tries 1 --redraws 0 --steps 80 --seeds 1"
    out = tmp_path / "chain"
    assert main([*options.split(), "--p", "7", "--widths", "6..4", "--out", str(out)]) == 0
    units = bilinear.load_results(out).units
    write_page(bilinear.load_results(out), tmp_path / "chain.html")
    open_page(browser, tmp_path / "chain.html", "#d=6")
    card = browser.find_element("id", "chain-card")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
    frame = browser.find_element("css selector", "#chain svg")
    width, height = frame.size["width"], frame.size["height"]
    kept, gone = units[4, 0].tolist(), set(units[6, 0].tolist()) - set(units[5, 0].tolist())
    said = {}
    for y in range(6):
        at = -width / 2 + width / 6, -height / 2 + (y + 0.5) * height / 6
        ActionChains(browser).move_to_element_with_offset(frame, *map(round, at)).perform()
        text = browser.find_element("css selector", "#chain .hover").text
        said[int(text.removeprefix("d = 6, unit ").partition(":")[0])] = text
    assert list(said) == sorted(kept) + [n for n in said if n not in kept]
    assert {name for name, text in said.items() if text.endswith("goes next")} == gone
    assert list(said)[-1] in gone
    assert all("k = " in text for text in said.values())
    framed = browser.find_element("css selector", "#chain .leaving").get_attribute("d")
    assert framed == "M0 5h1v1h-1Z"
    ActionChains(browser).move_to_element(frame).click().perform()
    assert shown_width(browser) == 5
    open_page(browser, page)
    assert not browser.find_element("id", "chain-card").is_displayed()
