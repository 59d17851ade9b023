"""Pictures that the tests of image files draw."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
COLOURS = {"circle": (200, 40, 40), "square": (40, 180, 40), "triangle": (40, 60, 220)}


def draw(shape: str, mode: str, width: int, height: int) -> Image.Image:
    """A filled shape in a mode of Pillow; 16-bit levels are 257 times those of 8 bits."""
    image = Image.new("RGB", (width, height), "white")
    brush = ImageDraw.Draw(image)
    box = (width // 5, height // 5, width - width // 5, height - height // 5)
    if shape == "circle":
        brush.ellipse(box, fill=COLOURS[shape])
    elif shape == "square":
        brush.rectangle(box, fill=COLOURS[shape])
    else:
        corners = [(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])]
        brush.polygon(corners, fill=COLOURS[shape])
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    """Saves an image and makes the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def shapes_folder(root: Path, count: int, modes: tuple[str, ...] = ("RGB",)) -> Path:
    """A folder of three classes with so many images each, of mixed sizes."""
    for shape in COLOURS:
        for index in range(count):
            mode = modes[index % len(modes)]
            suffix = ".jpg" if mode in ("CMYK", "RGB") else ".png"
            image = draw(shape, mode, 20 + index % 7, 20 + index % 5)
            save(image, root / shape / f"{index:03d}{suffix}")
    return root
