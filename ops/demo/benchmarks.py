"""Benchmarks of the rendered world: its videos, with annotation files in the layouts of the real ones.

    python -m ops.demo.benchmarks --output OUT

    OUT/clips/videos/   worlds of one scene a video (an id is a file name), and
    OUT/films/videos/   of three
    OUT/images/videos/  a picture of each test video of one scene, in a folder a class
    OUT/NAME/           annotation files of benchmark NAME, as `gexia import NAME --annotations OUT/NAME` reads them

What is asked for is always to be seen, and never what a file's name or place tells. Test videos are sources of their
own. Everything is a function of (sizes, seed); the worlds' seeds are no other world's.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from ops.demo import world
from ops.demo.world import BACKGROUND_COLOURS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, Source

CLIPS, FILMS, IMAGES = "clips", "films", "images"
CLIP_SCENES, FILM_SCENES = 1, 3
SECONDS = world.SCENE_FRAMES / world.FPS
VAL_SHARE = 1 / 7  # of the training videos, in benchmarks that have a validation split


@dataclass(frozen=True)
class Bench:
    """A benchmark's layout: which world it is of, who writes its files, which variant `gexia import` is told, and the
    folder of its videos where it is not the world's."""

    world: str
    write: Callable[[Path, list[Source], np.random.Generator], None]
    variant: str | None = None
    images: bool = False

    @property
    def videos(self) -> str:
        return f"{IMAGES if self.images else self.world}/videos"


def build(root: Path, clips: int = 400, films: int = 160, test_share: float = 0.3, seed: int = 1000) -> dict[str, Bench]:
    """Render the worlds and write all annotation files; returns the benchmarks by name."""
    for name, count, scenes, own in ((CLIPS, clips, CLIP_SCENES, seed), (FILMS, films, FILM_SCENES, seed + 1)):
        held_out = int(count * test_share)
        world.build(root / name, count, scenes, held_out, own)
        sources = world.imagine(count, scenes, held_out, own)
        for bench, layout in BENCHES.items():
            if layout.world == name:
                (root / bench).mkdir(exist_ok=True)
                layout.write(root / bench, sources, np.random.default_rng((seed, list(BENCHES).index(bench))))
    return BENCHES


# --- Words -------------------------------------------------------------------------------------------------------


def several_captions(scene: Scene) -> list[str]:
    """Three ways to tell a scene, each leaving something else out."""
    acts = [(f"{act.thing.colour} {act.thing.shape}", MOTIONS[act.motion].words) for act in scene.acts]
    return [
        f"there is {scene.background} behind " + " and ".join(f"the {thing} that {words}" for thing, words in acts),
        " and ".join(f"the {act.thing.size} {thing} {words}" for act, (thing, words) in zip(scene.acts, acts)),
        " then ".join(f"{words}: a {thing} on {scene.background.texture}" for thing, words in acts),
    ]


def question(scene: Scene, kind: int, rng: np.random.Generator) -> tuple[str, str, list[str]]:
    """(question, right answer, three wrong ones) about a scene's first thing: what it does, or which it is."""
    act = scene.acts[0]
    if kind % 2:
        right, others = MOTIONS[act.motion].words, [motion.words for motion in MOTIONS.values()]
        there = {MOTIONS[other.motion].words for other in scene.acts}
        asked = f"what does the {act.thing.colour} {act.thing.shape} do?"
    else:
        right, others = f"a {act.thing.colour} {act.thing.shape}", [f"a {c} {s}" for c in COLOURS for s in SHAPES]
        there = {f"a {other.thing.colour} {other.thing.shape}" for other in scene.acts}
        asked = "what is to be seen?"
    return asked, right, rng.choice(sorted(set(others) - there), 3, replace=False).tolist()


# --- Layouts -----------------------------------------------------------------------------------------------------


def msrvtt(folder: Path, sources: list[Source], rng) -> None:
    train, test = split(sources)
    entries = [{"sen_id": 0, "video_id": s.source_id, "caption": c} for s in train for c in several_captions(s.scenes[0])]
    dump(folder / "MSRVTT_data.json", {"videos": [], "sentences": entries})
    lines(folder / "MSRVTT_train.9k.csv", ["video_id", *(source.source_id for source in train)])
    rows = [f"ret{i},msr{i},{s.source_id},{several_captions(s.scenes[0])[0]}" for i, s in enumerate(test)]
    lines(folder / "MSRVTT_JSFUSION_test.csv", ["key,vid_key,video_id,sentence", *rows])


def msvd(folder: Path, sources: list[Source], rng) -> None:
    dump(folder / "raw-captions.json", {s.source_id: several_captions(s.scenes[0]) for s in sources})
    for name, part in zip(("train", "test"), split(sources), strict=True):
        lines(folder / f"{name}_list.txt", [source.source_id for source in part])


def lsmdc(folder: Path, sources: list[Source], rng) -> None:
    names = ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv")
    for name, part in zip(names, three_parts(sources), strict=True):
        lines(folder / name, [f"{s.source_id}\t0\t2\t0\t2\t{several_captions(s.scenes[0])[1]}" for s in part])


def activitynet(folder: Path, sources: list[Source], rng) -> None:
    for name, part in zip(("train.json", "val_1.json"), split(sources), strict=True):
        times = [[i * SECONDS, (i + 1) * SECONDS] for i in range(FILM_SCENES)]
        dump(folder / name, {
            source.source_id: {
                "duration": FILM_SCENES * SECONDS,
                "timestamps": times,
                "sentences": [several_captions(scene)[1] for scene in source.scenes],
            }
            for source in part
        })  # fmt: skip


def didemo(folder: Path, sources: list[Source], rng) -> None:
    for name, part in zip(("train", "val", "test"), three_parts(sources), strict=True):
        told = [(source.source_id, i, scene) for source in part for i, scene in enumerate(source.scenes)]
        entries = [{"video": f"{s}.mp4", "description": several_captions(scene)[1], "times": [[i, i]]} for s, i, scene in told]
        dump(folder / f"{name}_data.json", entries)


def coin(folder: Path, sources: list[Source], rng) -> None:
    """The thing's colour, of videos with one."""
    ids = {colour: number for number, colour in enumerate(COLOURS)}
    entries = {}
    for subset, part in zip(("training", "validation"), split(alone(sources)), strict=True):
        for source in part:
            colour = source.scenes[0].acts[0].thing.colour
            times = {"duration": SECONDS, "start": 0.0, "end": SECONDS, "annotation": []}
            entries[source.source_id] = {"class": colour.title(), "recipe_type": ids[colour], "subset": subset, **times}
    dump(folder / "COIN.json", {"database": entries})


def ucf101(folder: Path, sources: list[Source], rng) -> None:
    """The motion, of videos with one thing."""
    names = {motion: "".join(word.title() for word in kind.words.split()) for motion, kind in MOTIONS.items()}
    ids = {motion: number for number, motion in enumerate(sorted(MOTIONS), 1)}
    lines(folder / "classInd.txt", [f"{ids[motion]} {names[motion]}" for motion in sorted(MOTIONS)])
    for name, part in zip(("train", "test"), split(alone(sources)), strict=True):
        shown = [(s.source_id, s.scenes[0].acts[0].motion) for s in part]
        rows = [f"{names[m]}/{source}.avi" + (f" {ids[m]}" if name == "train" else "") for source, m in shown]
        lines(folder / f"{name}list01.txt", rows)


def hmdb51(folder: Path, sources: list[Source], rng) -> None:
    """The size, of videos with one thing; every tenth video is of no use to this split."""
    for size in SIZES:
        shown = [source for source in alone(sources) if source.scenes[0].acts[0].thing.size == size]
        uses = [0 if i % 10 == 9 else 1 if source.split == "train" else 2 for i, source in enumerate(shown)]
        rows = [f"{source.source_id}.avi {use}" for source, use in zip(shown, uses, strict=True)]
        lines(folder / f"{size}_test_split1.txt", rows)


def imagenet(folder: Path, sources: list[Source], rng) -> None:
    """The colour of the thing, of test videos with one, halfway through its motion."""
    _, test = split(alone(sources))
    colours = sorted({source.scenes[0].acts[0].thing.colour for source in test})
    dump(folder / "classnames.json", colours)
    for source in test:
        number = colours.index(source.scenes[0].acts[0].thing.colour)
        path = folder.parent / IMAGES / "videos" / f"n{number:08d}" / f"{source.source_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(world.render(source)[world.SCENE_FRAMES // 2], 95, "RGB", "444"))


def lvu(folder: Path, sources: list[Source], rng) -> None:
    """`scene`: the background's colour. `like_ratio`: the larger the first thing, the more it is liked."""
    for task in ("scene", "like_ratio"):
        (folder / task).mkdir(exist_ok=True)
        for name, part in zip(("train", "val", "test"), three_parts(sources), strict=True):
            head = "class_id class_name" if task == "scene" else "likes dislikes"
            rows = [f"{_lvu_answer(task, source.scenes[0])} {source.source_id} tt{i:07d}" for i, source in enumerate(part)]
            lines(folder / task / f"{name}.csv", [f"{head} youtube_id imdb_id", *rows])


def _lvu_answer(task: str, scene: Scene) -> str:
    if task == "scene":
        colour = scene.background.colour
        return f"{list(BACKGROUND_COLOURS).index(colour)} {colour}"
    likes = 500 + 20 * int(SIZES[scene.acts[0].thing.size])
    return f"{likes} {1000 - likes}"


def charades_ego(folder: Path, sources: list[Source], rng) -> None:
    """Which shapes are there, and what is done."""
    phrases = [f"a {shape}" for shape in SHAPES] + [f"something {motion.words}" for motion in MOTIONS.values()]
    codes = {phrase: f"c{number:03d}" for number, phrase in enumerate(phrases)}
    lines(folder / "Charades_v1_classes.txt", [f"{code} {phrase}" for phrase, code in codes.items()])
    for name, part in zip(("train", "test"), split(sources), strict=True):
        rows = []
        for source in part:
            acts = source.scenes[0].acts
            shown = {f"a {a.thing.shape}" for a in acts} | {f"something {MOTIONS[a.motion].words}" for a in acts}
            actions = ";".join(f"{codes[phrase]} 0.00 {SECONDS:.2f}" for phrase in sorted(shown))
            rows.append(f"{source.source_id},{actions},{SECONDS}")
        lines(folder / f"CharadesEgo_v1_{name}_only1st.csv", ["id,actions,length", *rows])


def how2qa(folder: Path, sources: list[Source], rng) -> None:
    """A question on each scene of a film, with its own segment."""
    for name, part in zip(("train", "val"), split(sources), strict=True):
        rows = []
        for number, (source, i, scene) in enumerate((s, i, scene) for s in part for i, scene in enumerate(s.scenes)):
            asked, right, wrong = question(scene, number, rng)
            rows.append(f"{source.source_id},[{i * SECONDS}:{(i + 1) * SECONDS}],{','.join(wrong)},{asked},{right}")
        lines(folder / f"how2QA_{name}_release.csv", rows)


def msvd_qa(folder: Path, sources: list[Source], rng) -> None:
    """Several questions a video, answered by a word."""
    numbers = {source.source_id: number for number, source in enumerate(sources)}
    lines(folder / "youtube_mapping.txt", [f"{source} vid{number}" for source, number in numbers.items()])
    for name, part in zip(("train", "test"), split(sources), strict=True):
        asked = [(numbers[s.source_id], pair) for s in part for pair in _open_questions(s.scenes[0])]
        rows = [{"id": i, "video_id": v, "question": q, "answer": a} for i, (v, (q, a)) in enumerate(asked)]
        dump(folder / f"{name}_qa.json", rows)


def _open_questions(scene: Scene) -> list[tuple[str, str]]:
    act, behind = scene.acts[0], scene.background
    return [
        (f"what colour is the {act.thing.shape}?", act.thing.colour),
        (f"what does the {act.thing.shape} do?", MOTIONS[act.motion].words),
        ("what is in the background?", behind.texture),
        ("what colour is the background?", behind.colour),
    ]


BENCHES = {
    "msrvtt": Bench(CLIPS, msrvtt),
    "msvd": Bench(CLIPS, msvd),
    "lsmdc": Bench(CLIPS, lsmdc),
    "activitynet": Bench(FILMS, activitynet),
    "didemo": Bench(FILMS, didemo),
    "coin": Bench(CLIPS, coin),
    "ucf101": Bench(CLIPS, ucf101),
    "hmdb51": Bench(CLIPS, hmdb51),
    "imagenet": Bench(CLIPS, imagenet, images=True),
    "lvu": Bench(CLIPS, lvu, "scene"),
    "charades_ego": Bench(CLIPS, charades_ego),
    "how2qa": Bench(FILMS, how2qa),
    "msvd_qa": Bench(CLIPS, msvd_qa),
}


def split(sources: list[Source]) -> tuple[list[Source], list[Source]]:
    """(train, test)."""
    return [s for s in sources if s.split == "train"], [s for s in sources if s.split != "train"]


def three_parts(sources: list[Source]) -> tuple[list[Source], list[Source], list[Source]]:
    """(train, val, test)."""
    train, test = split(sources)
    val = int(len(train) * VAL_SHARE)
    return train[:-val], train[-val:], test


def alone(sources: list[Source]) -> list[Source]:
    """Sources whose first scene shows one thing."""
    return [source for source in sources if len(source.scenes[0].acts) == 1]


def dump(path: Path, value) -> None:
    world.write_text(path, json.dumps(value))


def lines(path: Path, rows: list[str]) -> None:
    world.write_text(path, "".join(f"{row}\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Render worlds and write benchmarks' annotation files for them.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=400, help="videos of one scene")
    parser.add_argument("--films", type=int, default=160, help="videos of three")
    args = parser.parse_args()
    build(args.output, args.clips, args.films)


if __name__ == "__main__":
    main()
