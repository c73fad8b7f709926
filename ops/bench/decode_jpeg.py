"""Ways from a JPEG frame to a square of 224 pixels: `python -m ops.bench.decode_jpeg --footage A.mp4 B.mp4`.

Real frames, stored as `gex_pipeline` does (short side 256, quality 90) and larger (--larger); processor time of one
thread, median over rounds that alternate. `cut` takes the square out of the decoded picture, the others show all of its
short side; ours (`trainer.decode`) cuts. PSNR is against a decode at full size and an antialiased resize in floating
point; what is cut shows another part and has none. Libraries that are not installed are left out.
"""

import argparse
import io
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from ops.bench.common import emit
from shards.selection import Recipe
from shards.video import Clip, Request, read_clips
from trainer import decode

SIZE, QUALITY = 224, 90
Way = Callable[[bytes], np.ndarray]  # a JPEG -> uint8 [224, 224, 3]


def square(frame: np.ndarray, side: int) -> np.ndarray:
    top, left = ((room - side) // 2 for room in frame.shape[:2])
    return frame[top : top + side, left : left + side]


def whole(frame: np.ndarray) -> np.ndarray:
    return square(frame, min(frame.shape[:2]))


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def torchvision(data: bytes) -> np.ndarray:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB).permute(1, 2, 0).numpy()


def resize_pillow(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def resize_torchvision(frame: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    return F.resize(pixels, [SIZE, SIZE], antialias=True).permute(1, 2, 0).numpy()


def reference(data: bytes) -> np.ndarray:
    pixels = torch.from_numpy(whole(pillow(data)).copy()).permute(2, 0, 1).double()
    return F.resize(pixels, [SIZE, SIZE], antialias=True).permute(1, 2, 0).numpy()


def ways() -> dict[str, Way]:
    decoders: dict[str, Callable[[bytes], np.ndarray]] = {
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB"),
        "torchvision": torchvision,
        "Pillow": pillow,
    }
    resizes: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Pillow": resize_pillow, "torchvision": resize_torchvision}
    try:
        import cv2

        cv2.setNumThreads(1)
        decoders["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        resizes["OpenCV area"] = lambda frame: cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    except ImportError:
        pass
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG(os.environ.get("TURBOJPEG_LIB"))
        decoders["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=TJPF_RGB)
    except (ImportError, RuntimeError, OSError):
        pass
    found: dict[str, Way] = {"ours": ours}
    found["simplejpeg scaled while decoding, cut"] = lambda data: square(
        simplejpeg.decode_jpeg(data, "RGB", min_height=SIZE, min_width=SIZE), SIZE
    )
    for name, read in decoders.items():
        found[f"{name}, cut"] = lambda data, read=read: square(read(data), SIZE)
    for name, read in decoders.items():
        found[f"{name}, resized by Pillow"] = lambda data, read=read: resize_pillow(whole(read(data)))
    for name, resize in resizes.items():
        found[f"simplejpeg, resized by {name}"] = lambda data, resize=resize: resize(whole(decoders["simplejpeg"](data)))
    found["Pillow, drafted and resized"] = drafted
    return found


def ours(data: bytes) -> np.ndarray:
    return decode.fit(decode._decode_jpeg(data, SIZE, ""), SIZE, (0.5, 0.5))


def drafted(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIZE, SIZE))
    return resize_pillow(whole(np.asarray(image.convert("RGB"))))


def frames(videos: list[str], short_side: int, count: int) -> list[bytes]:
    """JPEG files of frames spread over the videos."""
    encode = lambda frame: simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=QUALITY)  # noqa: E731
    found = []
    for video in videos:
        recipe = Recipe(per_clip=count // len(videos), short_side=short_side)
        clips = read_clips(video, [Request("all", None, None)], recipe, encode)
        found += [frame for clip in clips if isinstance(clip, Clip) for frame in clip.frames]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", nargs="+", required=True, help="videos whose frames are decoded")
    parser.add_argument("--larger", type=int, default=360, help="short side of the larger frames")
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, fastest = [], {}
    for short_side in (256, args.larger):
        data = frames(args.footage, short_side, args.frames)
        times: dict[str, list[float]] = {name: [] for name in ways()}
        for _ in range(args.rounds):
            for name, way in ways().items():
                started = time.process_time()
                for jpeg in data:
                    way(jpeg)
                times[name].append(1e3 * (time.process_time() - started) / len(data))
        for name, way in ways().items():
            errors = [np.mean((way(jpeg) - reference(jpeg)) ** 2) for jpeg in data[::10]]
            shown = "" if "cut" in name or name == "ours" else f", {psnr(errors):.1f} dB"
            rows.append((f"{short_side}: {name}", statistics.median(times[name]), f"ms a frame{shown}"))
        fastest[short_side] = min(statistics.median(spent) for name, spent in times.items() if name != "ours")
    emit("decode_jpeg", rows, rows[0][1] / fastest[256], "about 1: no way is faster", frames=len(data))


def psnr(errors: list[float]) -> float:
    return 10 * np.log10(255**2 / np.mean(errors))


if __name__ == "__main__":
    main()
