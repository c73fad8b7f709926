"""A world whose sources share everything: what tells one from another is the course of its scenes, not any one clip.

    python -m ops.experiments.world --output world --sources 2000

Eight things, ten motions and four backgrounds serve all sources: 320 captions, each of which many sources have. Files
and columns are those of `ops.demo.world`.
"""

import argparse
import functools
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ops.demo.world import MOTIONS, Act, Background, Scene, Source, Thing, catalog, render, write_text, write_video

THINGS = [
    Thing("medium", colour, shape)
    for colour, shape in [
        ("red", "circle"), ("red", "star"), ("blue", "circle"), ("blue", "star"),
        ("yellow", "square"), ("yellow", "heart"), ("green", "square"), ("green", "heart"),
    ]
]  # fmt: skip
BACKGROUNDS = [Background(texture, colour) for texture in ("canvas", "checks") for colour in ("sand", "maroon")]
MOVES = [name for name in MOTIONS if name != "spin"]  # a circle's spin does not show


def imagine(sources: int, scenes: int, val_sources: int, seed: int) -> list[Source]:
    """Sources of the world; the scenes of one differ, those of two may be equal. The last `val_sources` are "val"."""
    rng = np.random.default_rng(seed)
    return [
        Source(
            source_id=f"source-{number:05d}",
            split="val" if number >= sources - val_sources else "train",
            seed=(seed, number),
            scenes=tuple(_imagine_scenes(rng, scenes)),
        )
        for number in range(sources)
    ]


def _imagine_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    background, scenes = BACKGROUNDS[rng.integers(len(BACKGROUNDS))], {}
    while len(scenes) < count:
        scene = Scene((Act(THINGS[rng.integers(len(THINGS))], str(rng.choice(MOVES))),), background)
        scenes[scene.caption] = scene
    return list(scenes.values())


def build(root: Path, sources: int, scenes: int, val_sources: int, seed: int) -> Path:
    """Render what is missing of a world into `root`; returns its catalog, which is written last."""
    world = imagine(sources, scenes, val_sources, seed)
    (root / "videos").mkdir(parents=True, exist_ok=True)
    missing = [source for source in world if not (root / "videos" / f"{source.source_id}.mp4").exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(functools.partial(_render_to, root / "videos"), missing, chunksize=16))
    write_text(root / "clips.jsonl", "".join(json.dumps(row) + "\n" for row in catalog(world)))
    return root / "clips.jsonl"


def _render_to(folder: Path, source: Source) -> None:
    write_video(folder / f"{source.source_id}.mp4", render(source))


def main() -> None:
    parser = argparse.ArgumentParser(description="Render a world whose sources share objects and backgrounds.")
    parser.add_argument("--output", required=True, type=Path, help="folder that gets videos/ and clips.jsonl")
    parser.add_argument("--sources", type=int, default=2000, help="videos")
    parser.add_argument("--scenes", type=int, default=6, help="clips a video")
    parser.add_argument("--val-sources", type=int, default=256, help="videos held out as the split val")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(build(args.output, args.sources, args.scenes, args.val_sources, args.seed))


if __name__ == "__main__":
    main()
