"""Images as PNG files in URLs, for pages that load nothing."""

from __future__ import annotations

import base64
import io
from math import sqrt
from typing import TypedDict

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

from pyro_vae.reporting.figures import as_drawn

# Bytes of the pixels of all pictures, and of all tiles of the atlas, above which they are made
# smaller. White pixels do not count: PNG stores them in next to nothing.
PICTURES = 500_000
ATLAS = 600_000
# Tiles per row of the atlas.
COLUMNS = 32


class Atlas(TypedDict):
    """Images of equal size in one picture: its URL, and width, height and columns of the tiles."""

    url: str
    width: int
    height: int
    columns: int


def pictures(images: Tensor, limit: int = PICTURES) -> list[str]:
    """Each image as a PNG file in a URL; smaller ones if they have more than `limit` bytes."""
    return [_url(pixels) for pixels in _pixels(images, limit)]


def atlas(images: Tensor) -> Atlas:
    """All images as tiles of one picture, row by row."""
    tiles = _pixels(images, ATLAS)
    channels, height, width = tiles.shape[1:]
    whole = make_grid(tiles, COLUMNS, padding=0)[:channels]  # it repeats a grey channel
    return {"url": _url(whole), "width": width, "height": height, "columns": COLUMNS}


def _pixels(images: Tensor, limit: int) -> Tensor:
    """Bytes of shape `(N, 1, height, width)` or `(N, 3, height, width)`."""
    images = as_drawn(images)
    scale = sqrt(limit / max(1, int((images < 1).sum())))
    if scale < 1:
        images = interpolate(images, scale_factor=scale, mode="area")
    return (images.cpu() * 255).round().byte()


def _url(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
