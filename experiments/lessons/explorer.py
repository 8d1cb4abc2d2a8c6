"""Make explorer.html: the report of a VAE in two dimensions, with ten questions about it.

    python experiments/lessons/explorer.py --data_dir DIR

The questions are the Jinja2 template questions.html; their numbers are those of the page.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pyro_vae.cli.main import main as pyro_vae

FOLDER = Path(__file__).parent
PAGE = FOLDER / "explorer.html"
TRAIN = "train --data mnist --latent_dim 2 --epochs 30 --report false --resume auto --run_dir"


def explored(page: str) -> list[dict[str, Any]]:
    """The images of the posterior explorer: number, picture, texts by name, texts by K."""
    _, after = page.split('<script type="application/json" id="data">')
    states = json.loads(after.split("</script>")[0])["snapshots"][-1]["images"]
    pictures = re.findall(r'<label class="choice">.*?<img src="(.*?)"', page, re.DOTALL)
    images = []
    for number, (state, picture) in enumerate(zip(states, pictures, strict=True), 1):
        draws = {int(drawn["text"]["k"]): drawn["text"] for drawn in state["draws"]}
        images.append({"number": number, "picture": picture, **state["text"], "draws": draws})
    return images


def with_questions(page: str, kl: float) -> str:
    """The page with the questions at its end, and a link to them at its top."""
    images = explored(page)
    chosen = {
        "first": images[0],
        "close": min(images, key=lambda image: float(image["total"])),
        "amortized": max(images, key=lambda image: float(image["amortization"])),
        "missed": max(images, key=lambda image: float(image["approximation"])),
    }
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
    questions = environment.get_template("questions.html").render(**chosen, kl=kl)
    body, end = page.rsplit("</section>", 1)
    link = ' · <a href="#questions">Ten questions</a></nav>'
    return f"{body}</section>\n{questions}{end}".replace("</nav>", link, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", default="runs/posterior-explorer")
    args = parser.parse_args()
    train, report = [*TRAIN.split(), args.run_dir], ["report", args.run_dir, "--out", str(PAGE)]
    for command in (train, report):
        if code := pyro_vae([*command, "--device", "cpu", "--data_dir", args.data_dir]):
            raise SystemExit(code)
    results = json.loads((Path(args.run_dir) / "results.json").read_text())
    PAGE.write_text(with_questions(PAGE.read_text(), results["kl"]["mean"]))


if __name__ == "__main__":
    main()
