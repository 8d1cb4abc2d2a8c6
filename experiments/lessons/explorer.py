"""Make explorer.html: the report of a VAE in two dimensions, with ten questions about it.

    python experiments/lessons/explorer.py --data_dir DIR

The questions are the Jinja2 template questions.html; their numbers are those of the page.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pyro_vae.cli.main import main as pyro_vae

FOLDER = Path(__file__).parent
PAGE = FOLDER / "explorer.html"
# k-hat below which an estimate may be reliable.
RELIABLE = 0.7
TRAIN = "train --data mnist --latent_dim 2 --epochs 30 --report false --resume auto --run_dir"


def _document(page: str) -> dict[str, Any]:
    """What the page shows of the last epoch."""
    _, after = page.split('<script type="application/json" id="data">')
    snapshot: dict[str, Any] = json.loads(after.split("</script>")[0])["snapshots"][-1]
    return snapshot


def explored(page: str) -> list[dict[str, Any]]:
    """The images of the posterior explorer: number, picture, texts by name, texts by K."""
    states = _document(page)["images"]
    pictures = re.findall(r'<label class="choice">.*?<img src="(.*?)"', page, re.DOTALL)
    images = []
    for number, (state, picture) in enumerate(zip(states, pictures, strict=True), 1):
        draws = {int(drawn["text"]["k"]): drawn["text"] for drawn in state["draws"]}
        images.append({"number": number, "picture": picture, **state["text"], "draws": draws})
    return images


def codes_outside(page: str) -> int:
    """How many codes lie outside the contour that holds 99 % of a standard normal."""
    points = _document(page)["models"]["plane_points"]["data"]
    radii = [x * x + y * y for x, y in zip(points["x"], points["y"], strict=True)]
    return sum(radius > -2 * math.log(0.01) for radius in radii)


def with_questions(page: str, kl: float) -> str:
    """The page with the questions at its top, and the plane and the posteriors below them."""
    images = explored(page)
    certain = [image for image in images if _k_hat(image) < RELIABLE]
    chosen = {
        "first": images[0],
        "close": min(images, key=lambda image: float(image["total"])),
        "amortized": max(images, key=lambda image: float(image["amortization"])),
        "hidden": max(certain or images, key=_missing),
    }
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
    questions = environment.get_template("questions.html")
    text = questions.render(**chosen, kl=kl, outside=codes_outside(page))
    before, after = page.rsplit("<main>", 1)
    return f"{before}<main>\n{text}{after}"


def _k_hat(image: dict[str, Any]) -> float:
    """k-hat of all draws; infinite if it is not known."""
    text = image["draws"][max(image["draws"])]["k_hat"]
    return math.inf if text == "-" else float(text)


def _missing(image: dict[str, Any]) -> float:
    """What the bound of all draws lacks to log p(x), in nats."""
    return float(image["log_p"]) - float(image["draws"][max(image["draws"])]["bound"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", default="runs/posterior-explorer")
    args = parser.parse_args()
    train, report = [*TRAIN.split(), args.run_dir], ["report", args.run_dir, "--out", str(PAGE)]
    report += ["--title", "The posterior explorer"]
    for command in (train, report):
        if code := pyro_vae([*command, "--device", "cpu", "--data_dir", args.data_dir]):
            raise SystemExit(code)
    results = json.loads((Path(args.run_dir) / "results.json").read_text())
    PAGE.write_text(with_questions(PAGE.read_text(), results["kl"]["mean"]))


if __name__ == "__main__":
    main()
