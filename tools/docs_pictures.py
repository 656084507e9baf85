"What the site does with pictures in dark mode."
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_opening


def is_drawing(picture: Path) -> bool:
    "Coloured lines on white, and no photographs: it may be inverted."
    small = Image.open(picture).convert('RGB').resize((200, 200), Image.Resampling.NEAREST)
    pixels = np.asarray(small)
    return bool((pixels.min(2) >= 250).mean() > .6 and (np.ptp(pixels, 2) > 60).any())


def on_dark(picture: Path) -> Path | None:
    """Grey pictures on a white page: the same on a dark page, in a file beside it; None: it is
    something else."""
    pixels = np.asarray(Image.open(picture).convert('RGB'))
    if (np.ptp(pixels, 2) > 8).any() or pixels[[0, -1]].min() < 250: return None
    grey = pixels[..., 0]
    # what is thinner is a label or a gap
    wide = lambda share: binary_opening(share > .2, np.ones(20))
    rows = wide((grey < 250).mean(1))
    if not rows.any(): return None
    panels = rows[:, None] & wide((grey[rows] < 250).mean(0))
    if panels.mean() < .2: return None
    page = (20 + (255 - grey.astype(float))*.85).astype(np.uint8)
    out = picture.with_name(f'{picture.stem}.dark.png')
    Image.fromarray(np.where(panels, grey, page)).save(out, optimize=True)
    return out
