"""A small captioned world, rendered to real H.264 files: data for the demo, for experiments and for tests.

    python -m ops.demo.world --output world --sources 400

A *source* is one video: a background and a cast that all its scenes share. A *scene* is one clip: one or two of
the cast, each with a motion. Sources draw from the same shapes, colours, textures and motions, so one clip seldom
tells its source apart; its caption is exact, and unlike every other caption of the world.

    OUT/videos/source-00000.mp4 …   96×96, 10 frames/s, the scenes one after another, a keyframe at least every 1.2 s
    OUT/clips.jsonl                 the catalog, written last: clip_id, source_id, video, start, end, caption, split,
                                    label (the first motion) and attributes (everything the scene shows)

Everything is a pure function of (sources, scenes, val_sources, seed): the same bytes from the same ffmpeg and numpy.
"""

import argparse
import functools
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import ffmpeg
import numpy as np

WIDTH, HEIGHT, FPS = 96, 96, 10
SCENE_FRAMES = 20
KEYFRAME_INTERVAL = 12

COLOURS = {
    "red": (222, 45, 38),
    "orange": (247, 140, 30),
    "yellow": (250, 214, 50),
    "green": (44, 160, 60),
    "blue": (38, 92, 214),
    "purple": (132, 60, 180),
    "pink": (245, 130, 190),
    "brown": (130, 84, 44),
    "white": (250, 250, 250),
    "black": (24, 24, 28),
}
# Names that no object has: a colour word says what it belongs to.
BACKGROUND_COLOURS = {
    "sand": (222, 204, 164),
    "teal": (64, 140, 140),
    "navy": (36, 50, 96),
    "lavender": (190, 180, 226),
    "mint": (176, 224, 196),
    "grey": (136, 140, 146),
    "maroon": (104, 36, 52),
    "olive": (116, 120, 56),
}
VISIBLE = 130  # RGB distance that an object's colour keeps from its background's
SIZES = {"small": 10.0, "medium": 15.0, "large": 21.0}  # radius in pixels
ROUND = {"circle", "ring"}  # spinning does not show


@dataclass(frozen=True)
class Thing:
    """One member of a cast."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Background:
    texture: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.texture}"


@dataclass(frozen=True)
class Act:
    """What one thing does in a scene; `motion` is a key of MOTIONS."""

    thing: Thing
    motion: str

    def __str__(self) -> str:
        return f"{self.thing} {MOTIONS[self.motion].words}"


@dataclass(frozen=True)
class Scene:
    acts: tuple[Act, ...]
    background: Background

    @property
    def caption(self) -> str:
        """The scene in words: everything that shows, nothing that does not."""
        words = f"{' while '.join(map(str, self.acts))} over {self.background}"
        return words[0].upper() + words[1:]


@dataclass(frozen=True)
class Source:
    """One video. `seed` gives what no caption tells: phases, offsets, the run of a texture."""

    source_id: str
    split: str  # "train" or "val"
    seed: tuple[int, int]
    scenes: tuple[Scene, ...]


# --- Imagining -------------------------------------------------------------------------------------------------


def imagine(sources: int, scenes: int = 4, val_sources: int = 0, seed: int = 0) -> list[Source]:
    """Sources of a world; all captions differ. The last `val_sources` are the split "val"."""
    rng = np.random.default_rng(seed)
    captions: set[str] = set()
    return [
        Source(
            source_id=f"source-{number:05d}",
            split="val" if number >= sources - val_sources else "train",
            seed=(seed, number),
            scenes=tuple(_imagine_scenes(rng, scenes, captions)),
        )
        for number in range(sources)
    ]


def _imagine_scenes(rng: np.random.Generator, count: int, captions: set[str]) -> list[Scene]:
    background = Background(rng.choice(list(TEXTURES)).item(), rng.choice(list(BACKGROUND_COLOURS)).item())
    cast = _imagine_cast(rng, background, size=int(rng.integers(2, 4)))
    scenes: list[Scene] = []
    while len(scenes) < count:
        players = rng.permutation(len(cast))[: 1 + (rng.random() < 0.4)]
        scene = Scene(tuple(_imagine_act(rng, cast[i]) for i in players), background)
        if scene.caption not in captions:
            captions.add(scene.caption)
            scenes.append(scene)
    return scenes


def _imagine_cast(rng: np.random.Generator, background: Background, size: int) -> list[Thing]:
    behind = BACKGROUND_COLOURS[background.colour]
    visible = [name for name, rgb in COLOURS.items() if np.linalg.norm(np.subtract(rgb, behind)) > VISIBLE]
    colours = rng.choice(visible, size, replace=False)
    shapes = rng.choice(list(SHAPES), size, replace=False)
    sizes = rng.choice(list(SIZES), size)
    return [Thing(*map(str, words)) for words in zip(sizes, colours, shapes, strict=True)]


def _imagine_act(rng: np.random.Generator, thing: Thing) -> Act:
    motions = [name for name in MOTIONS if not (name == "spin" and thing.shape in ROUND)]
    return Act(thing, rng.choice(motions).item())


# --- Shapes: signed distance to the outline, in units of the shape's radius; negative inside --------------------


def _polygon(x, y, corners: int, turn: float):
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    inradius = np.cos(np.pi / corners)
    return functools.reduce(np.maximum, (x * np.cos(a) + y * np.sin(a) for a in angles)) - inradius


def _star(x, y):
    # Fold the plane into one half-point of the star; what is left is the distance to a line from tip to notch.
    step = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + step / 2) % step - step / 2)
    radius = np.hypot(x, y)
    notch = 0.42 * np.array([np.cos(step / 2), np.sin(step / 2)])
    edge = notch - (1.0, 0.0)
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (radius * np.cos(angle) - 1.0) * normal[0] + radius * np.sin(angle) * normal[1]


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.9, y - 0.32), np.maximum(x - 0.32, y - 0.9))


def _heart(x, y):
    x, y = np.abs(x), -y
    lobe = np.hypot(x - 0.45, y - 0.35) - 0.5
    tip = (np.maximum(x - y - 0.807, x + y - 0.8)) * np.sqrt(0.5)  # its sides leave the lobes as tangents
    return np.minimum(lobe, tip)


SHAPES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.22,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.78,
    "triangle": lambda x, y: _polygon(x, y, 3, np.pi / 2),
    "diamond": lambda x, y: np.abs(x) * 0.8 + np.abs(y) * 0.6 - 0.62,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


# --- Textures: where the darker shade lies, as 0 and 1; lengths in periods of the pattern -------------------------

TEXTURES = {
    "canvas": lambda x, y: np.zeros_like(x),
    "stripes": lambda x, y: x % 1 < 0.5,
    "checks": lambda x, y: (x % 2 < 1) ^ (y % 2 < 1),
    "dots": lambda x, y: np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.28,
    "waves": lambda x, y: (y + 0.35 * np.sin(np.pi * x)) % 1 < 0.5,
}


# --- Motions: time u in [0, 1] -> x, y (fractions of the picture), angle (radians), scale ------------------------


@dataclass(frozen=True)
class Motion:
    words: str
    path: Callable  # (u [T], home x, home y) -> (x, y, angle, scale), each [T] or a number


MOTIONS = {
    "left": Motion("slides left", lambda u, x, y: (0.85 - 0.7 * u, y, 0, 1)),
    "right": Motion("slides right", lambda u, x, y: (0.15 + 0.7 * u, y, 0, 1)),
    "up": Motion("rises", lambda u, x, y: (x, 0.82 - 0.64 * u, 0, 1)),
    "down": Motion("sinks", lambda u, x, y: (x, 0.18 + 0.64 * u, 0, 1)),
    "spin": Motion("spins", lambda u, x, y: (x, y, 3 * np.pi * u, 1)),
    "grow": Motion("grows", lambda u, x, y: (x, y, 0, 0.35 + 0.9 * u)),
    "shrink": Motion("shrinks", lambda u, x, y: (x, y, 0, 1.25 - 0.9 * u)),
    "bounce": Motion("bounces", lambda u, x, y: (x, 0.78 - 0.5 * np.abs(np.sin(3 * np.pi * u)), 0, 1)),
    "sway": Motion("sways", lambda u, x, y: (x + 0.16 * np.sin(4 * np.pi * u), y, 0, 1)),
    "orbit": Motion(
        "circles around",
        lambda u, x, y: (0.5 + 0.28 * np.cos(2 * np.pi * (u + x)), 0.5 + 0.28 * np.sin(2 * np.pi * (u + x)), 0, 1),
    ),
    "still": Motion("rests", lambda u, x, y: (x, y, 0, 1)),
}


# --- Rendering -------------------------------------------------------------------------------------------------

_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) + np.float32(0.5)


def render(source: Source) -> np.ndarray:
    """The source's frames: uint8 [scenes × SCENE_FRAMES, HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng(source.seed)
    canvas = _paint_background(source.scenes[0].background, rng)
    return np.concatenate([_render_scene(scene, canvas, rng) for scene in source.scenes])


def _render_scene(scene: Scene, canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    frames = np.repeat(canvas[None], SCENE_FRAMES, axis=0)
    homes = [(0.5, 0.5)] if len(scene.acts) == 1 else [(0.3, 0.34), (0.7, 0.66)]
    for act, home in zip(scene.acts, homes, strict=True):
        _paint_act(frames, act, np.add(home, rng.uniform(-0.06, 0.06, 2)))
    return frames.astype(np.uint8)


def _paint_act(frames: np.ndarray, act: Act, home: np.ndarray) -> None:
    """Draw one moving thing into float32 frames [T, H, W, 3], in place."""
    u = np.linspace(0, 1, len(frames), dtype=np.float32)
    radius = SIZES[act.thing.size]
    path = MOTIONS[act.motion].path(u, *home.astype(np.float32))
    colour = np.array(COLOURS[act.thing.colour], np.float32)
    for frame, x, y, angle, scale in zip(frames, *(np.broadcast_to(p, u.shape) for p in path), strict=True):
        _paint_shape(frame, SHAPES[act.thing.shape], x * WIDTH, y * HEIGHT, angle, radius * scale, colour)


def _paint_shape(frame, shape, x: float, y: float, angle: float, radius: float, colour: np.ndarray) -> None:
    """Draw a filled, outlined, anti-aliased shape; only the pixels around it are touched."""
    reach = radius * 1.5 + 2
    rows = slice(max(0, int(y - reach)), max(0, int(y + reach) + 1))
    columns = slice(max(0, int(x - reach)), max(0, int(x + reach) + 1))
    dx, dy = (_X[rows, columns] - x) / radius, (_Y[rows, columns] - y) / radius
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    distance = shape(cos * dx + sin * dy, cos * dy - sin * dx) * radius
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    ink = np.clip(2.0 + distance, 0, 1)[..., None] * 0.35  # a darker rim keeps shapes apart from any background
    patch = frame[rows, columns]
    patch += cover * (colour * (1 - ink) - patch)


def _paint_background(background: Background, rng: np.random.Generator) -> np.ndarray:
    """The empty stage: float32 [H, W, 3] in 0..255."""
    period, phase = rng.uniform(14, 20), rng.uniform(0, 20, 2)
    x, y = (_X + phase[0]) / period, (_Y + phase[1]) / period
    shade = TEXTURES[background.texture](x, y)[..., None]
    base = np.array(BACKGROUND_COLOURS[background.colour], np.float32)
    return (base * (1 - 0.22 * shade)).astype(np.float32)


# --- Files -----------------------------------------------------------------------------------------------------


def write_video(path: Path, frames: np.ndarray) -> None:
    """Encode uint8 frames [T, H, W, 3] as H.264, byte-identical for the same frames and ffmpeg."""
    partial = path.with_name(f".{path.name}")
    stream = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{frames.shape[2]}x{frames.shape[1]}", r=FPS)
    bitexact = {"fflags": "+bitexact", "flags:v": "+bitexact", "threads": 1}
    coding = {"vcodec": "libx264", "pix_fmt": "yuv420p", "preset": "veryfast", "crf": 20, "g": KEYFRAME_INTERVAL}
    stream = stream.output(str(partial), format="mp4", loglevel="error", **coding, **bitexact)
    stream.overwrite_output().run(input=frames.tobytes())
    os.replace(partial, path)


def catalog(sources: list[Source]) -> list[dict]:
    """The clips, in the catalog's columns."""
    seconds = SCENE_FRAMES / FPS
    return [
        {
            "clip_id": f"{source.source_id}-{number}",
            "source_id": source.source_id,
            "video": f"videos/{source.source_id}.mp4",
            "start": number * seconds,
            "end": (number + 1) * seconds,
            "caption": scene.caption,
            "split": source.split,
            "label": MOTIONS[scene.acts[0].motion].words,
            "attributes": asdict(scene),
        }
        for source in sources
        for number, scene in enumerate(source.scenes)
    ]


def build(
    root: str | Path, sources: int, scenes: int = 4, val_sources: int = 0, seed: int = 0, workers: int | None = None
) -> Path:
    """Render a world into `root` and return its catalog. A finished world with the same arguments is kept as it is;
    one with others is replaced; one that was interrupted goes on."""
    root = Path(root)
    wanted = json.dumps({"sources": sources, "scenes": scenes, "val_sources": val_sources, "seed": seed})
    label, clips = root / "world.json", root / "clips.jsonl"
    if not label.exists() or label.read_text() != wanted:
        clips.unlink(missing_ok=True)
        shutil.rmtree(root / "videos", ignore_errors=True)
    if clips.exists():
        return clips
    (root / "videos").mkdir(parents=True, exist_ok=True)
    write_text(label, wanted)
    world = imagine(sources, scenes, val_sources, seed)
    missing = [s for s in world if not (root / "videos" / f"{s.source_id}.mp4").exists()]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(functools.partial(_render_to, root / "videos"), missing, chunksize=8))
    write_text(clips, "".join(json.dumps(row) + "\n" for row in catalog(world)))
    return clips


def _render_to(folder: Path, source: Source) -> None:
    write_video(folder / f"{source.source_id}.mp4", render(source))


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render a small captioned world.")
    parser.add_argument("--output", required=True, help="folder that gets videos/ and clips.jsonl")
    parser.add_argument("--sources", type=int, default=400, help="videos")
    parser.add_argument("--scenes", type=int, default=4, help="clips a video")
    parser.add_argument("--val-sources", type=int, default=64, help="videos held out as the split val")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 0 <= args.val_sources <= args.sources:
        parser.error(f"--val-sources {args.val_sources} of --sources {args.sources}: more than there are")
    clips = build(args.output, args.sources, args.scenes, args.val_sources, args.seed)
    print(f"{args.sources * args.scenes} clips in {args.sources} videos: {clips}")


if __name__ == "__main__":
    main()
