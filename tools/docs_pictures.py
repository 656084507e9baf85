"What the site does with pictures in dark mode."

import base64
import re
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_opening

FRAME = re.compile(r'iVBORw0KGgo[A-Za-z0-9+/=]+')  # a PNG in base64
IMAGE = re.compile(r'<img(?= src="data:image/png)')
PAGE = (20 + np.arange(256) * 0.85).astype(np.uint8)  # shades of a light page on a dark one


def pixels_of(picture) -> np.ndarray:
    return np.asarray(Image.open(picture).convert('RGB'))


def lowest(pixels: np.ndarray) -> np.ndarray:
    "Of red, green and blue; `pixels.min(2)` takes ten times as long."
    return np.minimum.reduce([*np.moveaxis(pixels, 2, 0)])


def highest(pixels: np.ndarray) -> np.ndarray:
    return np.maximum.reduce([*np.moveaxis(pixels, 2, 0)])


def is_drawing(picture) -> bool:
    "Lines on a pale page, and no photographs: it may be inverted."
    pixels = pixels_of(picture)
    return is_pale(pixels) and find_panels(pixels) is None


def is_pale(pixels: np.ndarray) -> bool:
    return bool((lowest(pixels) >= 215).mean() > 0.6)


def runs(share: np.ndarray, least: float) -> list[tuple[int, int]]:
    "Where that much is not white; what is thinner than 20 pixels is a label or a gap."
    found = binary_opening(share > least, np.ones(20))
    return np.flatnonzero(np.diff(np.r_[0, found, 0].astype(int))).reshape(-1, 2).tolist()


def is_photograph(box: np.ndarray) -> bool:
    "It is grey, neither flat nor dark lines on white."
    return bool((highest(box) - lowest(box) <= 8).all() and box.std() > 30 and box.mean() < 180)


def find_panels(pixels: np.ndarray) -> np.ndarray | None:
    """Where photographs lie on a white page, or heat maps, if they fill most of it; None: there
    are none."""
    filled = lowest(pixels) < 250
    panels = np.zeros_like(filled)
    if pixels[[0, -1]].min() < 250:
        return None
    pale = is_pale(pixels)
    for top, end in runs(filled.mean(1), 0.1):
        for left, right in runs(filled[top:end].mean(0), 0.2):
            box = slice(top, end), slice(left, right)
            panels[box] = not pale or is_photograph(pixels[box])
    return panels if panels.mean() > 0.02 else None


def darkened(pixels: np.ndarray, panels: np.ndarray) -> Image.Image:
    "The same panels on a dark page."
    turned = (255 - highest(pixels) - lowest(pixels))[..., None] + pixels  # modulo 256; hues stay
    return Image.fromarray(np.where(panels[..., None], pixels, PAGE[turned]))


def themes(svg: str) -> tuple[str, str]:
    "A drawing that follows the system, for a light page and for a dark one."
    media = re.compile(r'@media \(prefers-color-scheme:dark\)\{(.*?\})\}', re.S)
    return media.sub('', svg), media.sub(r'\1', svg)


def twins(picture: Path) -> tuple[Path, Path] | None:
    """The files that a light and a dark page show of a picture with panels, or of an SVG that
    follows the system; None: it is something else."""
    out = picture.with_stem(f'{picture.stem}.dark')
    if picture.suffix == '.svg':
        light = picture.with_stem(f'{picture.stem}.light')
        texts = themes(picture.read_text(encoding='utf-8'))
        for path, text in zip((light, out), texts):
            path.write_text(text, encoding='utf-8')
        return light, out
    pixels = pixels_of(picture)
    panels = find_panels(pixels)
    if panels is None:
        return None
    darkened(pixels, panels).save(out, compress_level=8)
    return picture, out


def explorer_on_dark(html: str) -> str:
    """An explorer, or the picture of a control: drawings say that they may be inverted;
    photographs have a twin."""
    first = BytesIO(base64.b64decode(FRAME.search(html)[0]))
    if is_drawing(first):
        return IMAGE.sub('<img class="drawing"', html)

    def dark(m):
        out = BytesIO()
        pixels = pixels_of(BytesIO(base64.b64decode(m[0])))
        panels = find_panels(pixels)
        if panels is None:
            panels = np.zeros(pixels.shape[:2], bool)
        darkened(pixels, panels).quantize(64).save(out, 'PNG')
        return base64.b64encode(out.getvalue()).decode()

    twin = IMAGE.sub('<img class="only-dark"', FRAME.sub(dark, html))
    return f'<div class="only-light">{html}</div><div class="only-dark">{twin}</div>'
