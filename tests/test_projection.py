"""The plane on which codes are drawn."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.reporting.projection import projection


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_up_to_two_dimensions_are_drawn_as_they_are(latent_dim):
    codes = torch.randn(5, latent_dim)
    points = projection(codes)(codes)
    torch.testing.assert_close(points[:, :latent_dim], codes.double())
    if latent_dim == 1:
        assert points[:, 1].tolist() == [0, 1, 2, 3, 4]


def test_components_have_the_greatest_variances_and_no_arbitrary_sign():
    codes = torch.randn(500, 4) * torch.tensor([0.1, 1.0, 10.0, 0.1]) + 3
    onto_plane = projection(codes)
    assert "99%" in onto_plane.names[0]
    points = onto_plane(codes)
    torch.testing.assert_close(points.mean(0), torch.zeros(2).double())
    assert points[:, 0].std() / points[:, 1].std() > 8
    largest = onto_plane.directions.abs().argmax(0)
    assert largest.tolist() == [2, 1]
    assert (onto_plane.directions[largest, [0, 1]] > 0).all()
    torch.testing.assert_close(projection(codes.flip(0)).directions, onto_plane.directions)
