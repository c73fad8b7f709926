"""A sample's frames on a page: a picture that plays when pointed at. Without scripts or further files."""

import base64
import io

from PIL import Image, ImageOps

SIDE = 96  # pixels of a frame

STYLE = """
.film { outline-offset: 3px } .film i, .film u { display: block; background-image: var(--film); border-radius: 5px }
.film i { aspect-ratio: 1; background-size: calc(var(--n) * 100%) 100%; background-position: var(--still) 0 }
.film u { aspect-ratio: var(--n); background-size: 100% 100%; margin-top: 4px; border-radius: 3px }
@keyframes play { from { background-position-x: 0 } to { background-position-x: 100% } }
@media (prefers-reduced-motion: no-preference) {
  .film:hover i, .film:focus i { animation: play 1.8s steps(var(--n), jump-none) infinite }
}
"""


def film(frames: list[bytes]) -> str:
    """HTML of JPEG frames: the middle one, playing them all when pointed at, over a strip of them all."""
    count = len(frames)
    still = 100 * (count // 2) / max(1, count - 1)  # where the middle frame lies on the sheet, %
    style = f"--film:url({sprite(frames)});--n:{count};--still:{still:.2f}%"
    return f'<div class=film tabindex=0 style="{style}"><i></i><u></u></div>'


def sprite(frames: list[bytes]) -> str:
    """Frames side by side, cut to squares, as a data URI."""
    images = [ImageOps.fit(Image.open(io.BytesIO(frame)), (SIDE, SIDE)) for frame in frames]
    sheet = Image.new("RGB", (SIDE * len(images), SIDE))
    for number, image in enumerate(images):
        sheet.paste(image, (number * SIDE, 0))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
