"""Two views of a image as iBOT composes its global ones (Zhou et al. 2022, arXiv 2111.07832),
from Pillow and torchvision's first transforms."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Blur:
    """A Gaussian of 0.1 to 2 px, that often."""

    def __init__(self, prob: float, seed: int) -> None:
        self.prob, self.rng = prob, np.random.default_rng(seed)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurred, or as it is."""
        if self.rng.random() >= self.prob:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=self.rng.uniform(0.1, 2.0)))


class Solarise:
    """What is bright becomes dark, that often."""

    def __init__(self, prob: float, seed: int) -> None:
        self.prob, self.rng = prob, np.random.default_rng(seed)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Solarised, or as it is."""
        return ImageOps.solarize(image) if self.rng.random() < self.prob else image


def colours() -> T.Compose:
    """Jitter of brightness, contrast, saturation and hue, now and then grey; from torch's global
    generator."""
    jitter = T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    return T.Compose([T.RandomApply([jitter], p=0.8), T.RandomGrayscale(p=0.2)])


class PilViews:
    """The two views of a file, [3, view_px, view_px] each, normalised.

    Args:
        view_px: side of the views.
        scale: least and largest area of a crop relative to the image's.
        seed: of blur and solarisation; the rest draws from torch's global generator.
    """

    def __init__(
        self, view_px: int = 224, scale: tuple[float, float] = (0.14, 1.0), seed: int = 0
    ) -> None:
        crop = T.RandomResizedCrop(view_px, scale=scale, interpolation=InterpolationMode.BICUBIC)
        start = [crop, T.RandomHorizontalFlip(p=0.5), colours()]
        end = [T.ToTensor(), T.Normalize(MEAN, STD)]
        self.first = T.Compose([*start, Blur(1.0, seed), *end])
        self.second = T.Compose([*start, Blur(0.1, seed + 1), Solarise(0.2, seed + 2), *end])

    def __call__(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a file and cut it twice."""
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        return self.first(image), self.second(image)
