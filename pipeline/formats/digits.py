"""Digits of other sets in the frame of MNIST: 20x20 pixels in the middle of 28x28."""

import numpy as np
from PIL import Image

BOX, SIDE = 20, 28


def frame(images: np.ndarray) -> np.ndarray:
    """Resize square images in [0, 1] (N, H, H) bilinearly to 20x20, with a black margin: uint8 (N, 28, 28)."""
    framed = np.zeros((len(images), SIDE, SIDE), dtype=np.uint8)
    margin = (SIDE - BOX) // 2
    for target, image in zip(framed, images, strict=True):
        levels = Image.fromarray((image * 255).astype(np.float32)).resize((BOX, BOX), Image.Resampling.BILINEAR)
        target[margin:-margin, margin:-margin] = np.asarray(levels).round().clip(0, 255)
    return framed
