"""The demo's input: a real micrograph, enlarged by mirroring, as a noisy camera would record it."""

import numpy as np
import numpy.typing as npt
from skimage.data import immunohistochemistry

SOURCE = "skimage.data.immunohistochemistry"
NOISE = 0.1


def noisy_image(size: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return the image, (3, `size`, `size`), axes CYX, intensities about 0 to 1.

    Without the noise, tiles one period of the mirroring apart would be equal, and one written in
    the place of the other would go unnoticed.

    Parameters
    ----------
    size : int
        Height and width, voxels.
    seed : int
        Of the Gaussian noise, whose standard deviation is `NOISE`.
    """
    colours: npt.NDArray[np.uint8] = immunohistochemistry()  # type: ignore[no-untyped-call] # scikit-image has no types
    image = np.moveaxis(colours, -1, 0).astype(np.float32) / np.float32(255)
    _, height, width = image.shape
    missing = ((0, 0), (0, max(0, size - height)), (0, max(0, size - width)))
    mirrored = np.pad(image, missing, mode="reflect")[:, :size, :size]
    noise = np.random.default_rng(seed).standard_normal(mirrored.shape, dtype=np.float32)
    return np.ascontiguousarray(mirrored + np.float32(NOISE) * noise)
