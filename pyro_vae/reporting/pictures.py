"""Images as PNG files in URLs, for pages that load nothing."""

from __future__ import annotations

import base64
import io
from math import sqrt
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

# Bytes of the pixels of all pictures, and of all tiles of the atlas, above which they are made smaller.
PICTURES, ATLAS = 500_000, 1_000_000
# Tiles per row of the atlas.
COLUMNS = 32


def pictures(images: Tensor) -> list[str]:
    """Each image as a PNG file in a URL."""
    return [_url(pixels) for pixels in _pixels(images, PICTURES)]


def atlas(images: Tensor) -> dict[str, Any]:
    """All images as tiles of one PNG file in a URL, row by row."""
    tiles = _pixels(images, ATLAS)
    channels, height, width = tiles.shape[1:]
    whole = make_grid(tiles, COLUMNS, padding=0)[:channels]  # it repeats a grey channel
    return {"atlas": _url(whole), "tile": {"width": width, "height": height, "columns": COLUMNS}}


def _pixels(images: Tensor, limit: int) -> Tensor:
    """Bytes of shape `(N, 1, height, width)`, grey images inverted as in the figures, or `(N, 3, height, width)`."""
    images = images[:, :3] if images.shape[1] in (3, 4) else 1 - images.mean(1, keepdim=True)
    scale = sqrt(limit / images.numel())
    if scale < 1:
        images = interpolate(images, scale_factor=scale, mode="area")
    return (images.cpu() * 255).round().byte()


def _url(pixels: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
