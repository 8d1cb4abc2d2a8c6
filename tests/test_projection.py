"""The planes on which codes are drawn."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.reporting.projection import planes


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_up_to_two_dimensions_are_drawn_as_they_are(latent_dim):
    codes = torch.randn(5, latent_dim)
    (plane,) = planes(codes, [0])
    torch.testing.assert_close(plane.points[:, :latent_dim], codes.double())
    if latent_dim == 1:
        assert plane.points[:, 1].tolist() == [0, 1, 2, 3, 4]


def test_more_dimensions_are_drawn_by_t_sne_and_by_the_most_active_two():
    codes = torch.randn(30, 4)
    codes[:15] += 20
    t_sne, active = planes(codes, [2, 0])
    assert active.names == ("z[2]", "z[0]")
    torch.testing.assert_close(active.points, codes[:, [2, 0]].double())
    assert "mean nothing" in t_sne.caption
    # Two far groups stay apart, and the seed is fixed.
    first, second = t_sne.points[:15], t_sne.points[15:]
    assert torch.cdist(first, second).min() > torch.cdist(first, first).max() / 2
    assert torch.equal(planes(codes, [2, 0])[0].points, t_sne.points)


def test_a_single_active_dimension_has_a_second_axis_and_few_codes_no_t_sne():
    (plane,) = planes(torch.randn(3, 4), [1])
    assert plane.names == ("z[1]", "z[0]")
