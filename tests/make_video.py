"""Videos whose every frame shows its own timestamp, made by ffmpeg and read back from pixels."""

import subprocess

import numpy as np

BITS, BIT_WIDTH, HEIGHT = 16, 16, 64
# A bar per bit of the milliseconds since the first frame, white for 1.
_PATTERN = f"geq=lum='if(mod(floor(round(T*1000)/pow(2,floor(X/{BIT_WIDTH}))),2),235,16)':cb=128:cr=128,format=yuv420p"
H264 = ("-c:v", "libx264", "-crf", "10", "-g", "50", "-bf", "2")


def ffmpeg(*arguments) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True, timeout=60)


def pattern_video(path, *codec, seconds=4, fps=25, filter="null") -> None:
    """`filter` may move timestamps (setpts) before they are drawn."""
    source = f"color=black:s={BITS * BIT_WIDTH}x{HEIGHT}:r={fps}:d={seconds}"
    codec = codec or H264
    ffmpeg("-f", "lavfi", "-i", source, "-vf", f"{filter},{_PATTERN}", "-fps_mode", "vfr", *codec, path)


def shown_ms(frame: np.ndarray) -> int:
    """The timestamp that an upright frame [H, W, 3] shows."""
    row = frame[frame.shape[0] // 2].mean(axis=-1)
    centres = [int((bit + 0.5) * frame.shape[1] / BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if row[x] > 128)
