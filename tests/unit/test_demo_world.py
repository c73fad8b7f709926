"""Promises of the rendered world that demo, experiments and tests build on."""

import json
from collections import defaultdict

import av
import numpy as np
import pytest

from ops.demo import world


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    clips = world.build(root, sources=3, scenes=3, val_sources=1, seed=7)
    return root, [json.loads(line) for line in clips.read_text().splitlines()]


def test_no_caption_is_said_twice_in_thousands_of_sources():
    captions = [row["caption"] for row in world.catalog(world.imagine(3000, scenes=4))]
    assert len(set(captions)) == len(captions) == 12000


def test_a_source_keeps_its_background_and_a_cast_of_at_most_three():
    for source in world.imagine(200, scenes=6):
        assert len({scene.background for scene in source.scenes}) == 1
        assert len({act.thing for scene in source.scenes for act in scene.acts}) <= 3


def test_sources_share_things_and_backgrounds_so_that_one_clip_does_not_tell_them_apart():
    owners = defaultdict(set)
    for source in world.imagine(2000):
        owners[source.scenes[0].background].add(source.source_id)
        for thing in {act.thing for scene in source.scenes for act in scene.acts}:
            owners[thing].add(source.source_id)
    assert min(map(len, owners.values())) > 1


def test_a_caption_names_what_the_attributes_hold():
    for row in world.catalog(world.imagine(50)):
        attributes = row["attributes"]
        for act in attributes["acts"]:
            thing = " ".join(act["thing"][key] for key in ("size", "colour", "shape"))
            assert f"{thing} {world.MOTIONS[act['motion']].words}" in row["caption"]
        background = attributes["background"]
        assert row["caption"].endswith(f"over {background['colour']} {background['texture']}")
        assert row["label"] == world.MOTIONS[attributes["acts"][0]["motion"]].words


def test_held_out_sources_are_as_many_as_asked_for():
    rows = world.catalog(world.imagine(40, scenes=4, val_sources=9))
    assert len({row["source_id"] for row in rows if row["split"] == "val"}) == 9


@pytest.mark.parametrize("motion, axis, sign", [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_things_move_the_way_the_caption_says(motion, axis, sign):
    act = world.Act(world.Thing("medium", "red", "star"), motion)
    scene = world.Scene((act,), world.Background("canvas", "mint"))
    frames = world.render(world.Source("s", "train", (0, 0), (scene,))).astype(int)
    red = (frames[..., 0] - frames[..., 1]) > 100
    centres = np.array([np.argwhere(mask).mean(axis=0)[axis] for mask in red])
    assert (sign * np.diff(centres) > 0).all()


def test_every_colour_has_a_background_and_every_background_enough_colours():
    casts = [
        world._imagine_cast(np.random.default_rng(i), world.Background("canvas", name), size=3)
        for name in world.BACKGROUND_COLOURS
        for i in range(50)
    ]
    assert {thing.colour for cast in casts for thing in cast} == set(world.COLOURS)


def test_videos_are_h264_with_several_keyframes_and_hold_every_scene(small_world):
    root, rows = small_world
    for video in {row["video"] for row in rows}:
        with av.open(str(root / video)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            frames = list(container.decode(stream))
        assert len(frames) == 3 * world.SCENE_FRAMES
        assert sum(frame.key_frame for frame in frames) >= 3
        end = max(row["end"] for row in rows if row["video"] == video)
        assert end == pytest.approx(float(frames[-1].pts * stream.time_base) + 1 / world.FPS)


def test_the_same_seed_gives_the_same_bytes_and_an_interrupted_world_goes_on(small_world, tmp_path):
    root, _ = small_world
    world.build(tmp_path, sources=3, scenes=3, val_sources=1, seed=7)
    (tmp_path / "clips.jsonl").unlink()
    (tmp_path / "videos/source-00001.mp4").unlink()
    world.build(tmp_path, sources=3, scenes=3, val_sources=1, seed=7)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((root / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_another_world_replaces_the_one_in_its_place(tmp_path):
    world.build(tmp_path, sources=2, scenes=1, seed=1)
    before = (tmp_path / "videos/source-00000.mp4").read_bytes()
    world.build(tmp_path, sources=1, scenes=1, seed=2)
    assert [p.name for p in (tmp_path / "videos").iterdir()] == ["source-00000.mp4"]
    assert (tmp_path / "videos/source-00000.mp4").read_bytes() != before
