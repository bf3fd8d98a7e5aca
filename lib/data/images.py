"""Reading one image file, of any format and mode that Pillow knows, as RGB.

Needs no torch, so that processes that only read start at once.
"""

import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from utils.text import printable


def load_rgb(path: str) -> Image.Image:
    """Read an image of any mode (grey, palette, CMYK, RGBA, ...) as RGB, wholly decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and transparency: no matter here
            with Image.open(path) as image:
                return eight_bits(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image"
        elif isinstance(error, Image.DecompressionBombError):
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            reason = f"it has more pixels than Pillow reads ({most}) and must be made smaller"
        name = printable(str(path))
        raise UserError(f"cannot read {name}: {reason}; replace or remove it") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as 8 bits, any other as it is."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)  # Pillow's own conversion clips them to white or black
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # and NaN
            raise ValueError(f"its numbers reach from {low:g} to {high:g}; use [0, 1] or [0, 255]")
        values = values * 255 if high <= 1 else values
        return Image.fromarray(values.round().astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"its numbers reach from {low} to {high}; use [0, 255] or [0, 65535]")
    if image.mode == "I" and high <= 255:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray((values // 256).astype(np.uint8))
