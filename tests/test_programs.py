"""Batches: rows that are sliced together, and arguments that have no rows."""

import torch

from pyro_vae.engine.programs import Batch


def test_slices_select_the_rows_of_every_tensor():
    batch = Batch(torch.arange(6).reshape(3, 2), torch.arange(3), None, 2.0, torch.tensor(0.5))
    part = batch[1:]
    assert len(part) == 2
    assert part.x.tolist() == [[2, 3], [4, 5]]
    assert part.y.tolist() == [1, 2]
    assert part.more[1:] == (None, 2.0, torch.tensor(0.5))
    assert batch[torch.tensor([2, 0])].y.tolist() == [2, 0]


def test_a_program_receives_all_arguments():
    def program(x, y, scale):
        return len(x), y, scale

    batch = Batch(torch.zeros(2), None, 3.0)
    assert program(*batch) == (2, None, 3.0)
    assert batch.y is None
    assert Batch(torch.zeros(2)).y is None


def test_parts_cover_all_rows_in_order():
    parts = list(Batch(torch.arange(5), torch.arange(5)).split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.cat([part.y for part in parts]).tolist() == [0, 1, 2, 3, 4]


def test_repeats_each_row():
    assert Batch(torch.tensor([1, 2])).repeat_interleave(2).x.tolist() == [1, 1, 2, 2]
