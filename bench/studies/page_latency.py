"""How long does the page of a sweep take to paint, and to respond to its slider?

    python -m bench.studies.page_latency RESULTS [--rounds 5]

Writes the page of a results folder, opens it in headless Chromium, and stores both times in
bench/results/page_latency.json. A script in the page times each response, from the slider's input
event until the second animation frame after it. By then the browser has displayed the change.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from selenium import webdriver

from bench.measure.environment import write_result
from bilinear.page.write import write_page
from bilinear.results.open import load_results

# Moves the slider one width at a time. `drawn` ends when the page's event handler returns. `shown`
# ends at the frame after the one that paints, so it includes waiting for two frames, 17 ms each.
STEPS = """
const done = arguments[arguments.length - 1], slider = document.getElementById("slider");
const drawn = [], shown = [], last = +slider.max;
const frame = () => new Promise(requestAnimationFrame);
(async () => {
  for (let at = 1; at <= last; at++) {
    await frame();
    const start = performance.now();
    slider.value = at;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    drawn.push(performance.now() - start);
    await frame();
    await frame();
    shown.push(performance.now() - start);
  }
  done({ drawn, shown });
})();
"""
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def browser() -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    flags = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "window-size=1440,900"]
    for flag in [*flags, *(["no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )


def one_round(driver: Any, page: Path) -> dict[str, Any]:
    """Load the page anew, then step the slider over every width."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get("about:blank")
    driver.get(page.as_uri())
    wait = WebDriverWait(driver, 20, poll_frequency=0.05)
    paint = wait.until(lambda b: b.execute_script(PAINT))
    wait.until(lambda b: b.find_elements("css selector", "#accuracy svg"))
    return {"first_paint": paint, **driver.execute_async_script(STEPS)}


def spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    at = {"median": median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))]}
    return {name: round(ms, 1) for name, ms in {**at, "worst": ordered[-1]}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    results = load_results(args.results)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.html"
        page = write_page(results, path)
        driver = browser()
        version = driver.capabilities["browserVersion"]
        driver.set_script_timeout(60)
        one_round(driver, path)  # not counted: it loads the browser from the disk
        rounds = [one_round(driver, path) for _ in range(args.rounds)]
        driver.quit()
    content = {
        "question": "page of a sweep: first paint, and slider response, in ms",
        "chromium": version,
        "p": results.config.p,
        "widths": len(results.config.widths),
        "remainders": len(page.remainders),
        "bytes": page.size,
        "first_paint_ms": spread([r["first_paint"] for r in rounds]),
        "slider_drawn_ms": spread([t for r in rounds for t in r["drawn"]]),
        "slider_shown_ms": spread([t for r in rounds for t in r["shown"]]),
    }
    write_result("page_latency", content)
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
