"""Pictures that show something, as a camera's do."""

import numpy as np

SCENE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


def picture(value: int) -> np.ndarray:
    """(120, 160, 3) uint8: the same scene under a row of this value."""
    image = SCENE.copy()
    image[0] = value
    return image
