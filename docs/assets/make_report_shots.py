"""Takes the pictures of a report that the documents show: report-desktop.png, report-dark.png, report-phone.png.

    python docs/assets/make_report_shots.py                 # of a run that no training made
    python docs/assets/make_report_shots.py runs/demo       # of a real one

Needs Chromium with its driver, selenium and Pillow.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ASSETS = Path(__file__).parent
ROOT = ASSETS.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import DESKTOP, PHONE, Page, find_browser, open_browser  # noqa: E402
from synthetic_run import Shape, write_run  # noqa: E402

from trl_mise.report import write_report  # noqa: E402

MOST_BYTES = 200_000


def save(page: Page, name: str) -> None:
    """With as many colours as a small file can hold."""
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB")
    path = ASSETS / name
    picture.save(path, optimize=True)
    for colours in (256, 128, 64):
        if path.stat().st_size < MOST_BYTES:
            break
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


def go_to(page: Page, selector: str, above: int) -> None:
    """Scrolls a part of the page to so many pixels below the top, and lets the charts draw."""
    page.js(
        "document.documentElement.style.scrollBehavior = 'auto';"
        "const part = document.querySelector(arguments[0]);"
        "scrollTo(0, part.getBoundingClientRect().top + scrollY - arguments[1])",
        selector,
        above,
    )
    page.pause(400)


def most_telling(page: Page) -> None:
    """Opens an episode of the middle of the run that has good and bad steps."""
    page.js(
        "const f = document.querySelector('.filters').elements; const middle = Math.round(Number(f.to.value) / 2);"
        "f.from.value = middle;"
        "document.querySelector('.filters').dispatchEvent(new Event('input', { bubbles: true }))"
    )
    page.pause()
    page.js("document.querySelectorAll('.row')[3].click()")
    page.pause()


def take(page: Page, report: Path) -> None:
    page.emulate({**DESKTOP, "height": 1120})
    page.load(report)
    page.pause(500)
    save(page, "report-desktop.png")
    page.emulate({**DESKTOP, "height": 1000}, prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    page.load(report)
    most_telling(page)
    go_to(page, "#episodes", 62)
    save(page, "report-dark.png")
    page.emulate(PHONE, prefers_reduced_motion="reduce")
    page.load(report)
    most_telling(page)
    go_to(page, ".detail", 50)
    save(page, "report-phone.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", type=Path, help="a run directory; a made-up run if not given")
    run_dir: Path | None = parser.parse_args().run_dir
    binary, driver = find_browser()
    with tempfile.TemporaryDirectory() as folder:
        if run_dir is None:
            run_dir = write_run(Path(folder) / "shop-clerk", Shape(updates=60, evaluations=(0, 20, 40, 60)))
        report = write_report(run_dir, Path(folder) / "report.html")
        with open_browser(binary, driver, Path(folder) / "profile") as page:
            take(page, report)


if __name__ == "__main__":
    main()
