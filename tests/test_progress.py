"""What progress bars show, and where."""

import pytest

from pyro_vae.engine.progress import live, progress_bar


def test_a_bar_shows_the_metrics_that_are_known():
    assert live({"step": 3, "elbo": -101.26, "kl": 20.04}) == "ELBO -101.3, KL 20.0"
    assert live({"active_units": 7}) == "7 active"
    assert live({}) == ""


@pytest.mark.parametrize(("rank", "hidden"), [("0", None), ("1", True)])
def test_only_the_main_process_shows_bars(rank, hidden, monkeypatch):
    seen = {}
    monkeypatch.setattr("pyro_vae.engine.progress.tqdm", lambda **options: seen.update(options))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    progress_bar(10, "scoring")
    # None is tqdm's setting for terminals only.
    assert seen["disable"] is hidden
    assert (seen["total"], seen["desc"]) == (10, "scoring")
