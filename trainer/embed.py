"""`gexia embed CHECKPOINT`: videos or texts -> a parquet file of their embeddings (float32, of length 1).

--data DIR         every sample of a dataset, its video and its texts: split, granularity, sample_id, what, embedding
--texts FILE       one text a line: text, embedding
--videos FILE ...  video files, each whole: video, duration_ms, embedding
"""

import argparse
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor

from shards import format, storage
from shards.errors import UserError
from shards.plain import open_data
from shards.writer import parquet_bytes
from trainer import evaluate
from trainer.config import EvaluateConfig
from trainer.data_config import DataConfig
from trainer.decode import fit
from trainer.embeddings import VIDEO, Embedder

BATCH = 32


def main(argv: list[str]) -> int:
    """Write the file; returns 0."""
    args = _parser().parse_args(argv)
    storage.check_file(args.output, "--output")
    accelerator = Accelerator()
    model = evaluate.load_model(args.checkpoint).to(accelerator.device)
    config = EvaluateConfig(args.checkpoint, granularities=[args.granularity] if args.granularity else format.GRANULARITIES)
    recipes = evaluate.choose_recipes(config)
    if args.data:
        tables = list(_of_dataset(args, accelerator, model, recipes))
    elif args.texts:
        tables = [_of_texts(args, accelerator, model, recipes)]
    else:
        tables = [_of_videos(args, accelerator, model, recipes)]
    if not tables:
        raise UserError(f"{args.data}: no sample could be read")
    table = pa.concat_tables(tables)
    table = table.replace_schema_metadata({"model": args.checkpoint})
    storage.write_bytes_atomic(args.output, parquet_bytes(table))
    print(f"{len(table):,} embeddings of {model.architecture['embed_dim']} numbers: {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gexia embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that pretrain.py wrote (RUN/model)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="DIR", help="published dataset, or WebDataset tars; folder or URL")
    what.add_argument("--texts", metavar="FILE", help="UTF-8, one text a line; - reads the standard input")
    what.add_argument("--videos", metavar="FILE", nargs="+")
    parser.add_argument("--output", required=True, metavar="FILE.parquet")
    parser.add_argument(
        "--granularity", choices=format.GRANULARITIES, help="of a dataset: only these samples; of files: whose #iter and frames"
    )
    parser.add_argument("--split", help="of a dataset: only this split")
    parser.add_argument("--cache", help='folder of kept embeddings (default: CHECKPOINT/embeddings; "none": nothing is kept)')
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    return parser


def _of_dataset(args, accelerator, model, recipes) -> Iterator[pa.Table]:
    dataset = open_data(args.data)
    parts = dict.fromkeys((s.split, s.granularity) for s in dataset.select(args.split, args.granularity))
    if not parts:
        what = " and ".join(filter(None, (args.granularity, args.split)))
        raise UserError(f"{args.data}: no {what} samples")
    for split, granularity in parts:
        samples = sum(shard.samples for shard in dataset.select(split, granularity))
        # No limit: any number of samples may have no text, and what is left out is told.
        loader = DataConfig(split=split, size=model.image_tower.size, workers=args.workers, max_failures=samples)
        embed = Embedder(accelerator, model, BATCH, loader, evaluate.cache_folder(args.cache, args.checkpoint))
        recipe = recipes[granularity]
        for name, count in recipe.iter.items():  # each alone: samples without a text have a video all the same
            found = embed(dataset, granularity, recipe.frames, {name: count})[name]
            if left_out := samples - len(found.sample_ids):
                print(f"{split} {granularity}: {left_out:,} of {samples:,} samples have no {name} that could be read")
            if not found.sample_ids:
                continue
            columns = {"split": split, "granularity": granularity, "what": name}
            columns = {key: [value] * len(found.rows) for key, value in columns.items()}
            columns["sample_id"] = [found.sample_ids[number] for number in found.sample.tolist()]
            yield pa.table({**columns, "embedding": _column(found.rows)})


def _of_texts(args, accelerator, model, recipes) -> pa.Table:
    recipe = recipes[args.granularity or format.SHORT]
    try:
        with open(0 if args.texts == "-" else args.texts, encoding="utf-8") as file:
            texts = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {args.texts}: {error}") from None
    if not texts or not all(texts):
        where = f"line {texts.index('') + 1} is empty" if texts else "holds no text"
        raise UserError(f"--texts {args.texts}: {where}")
    embed = Embedder(accelerator, model, BATCH, DataConfig(size=model.image_tower.size))
    return pa.table({"text": texts, "embedding": _column(embed.texts(texts, recipe.iter[recipe.views[-1]]))})


@torch.no_grad()
def _of_videos(args, accelerator, model, recipes) -> pa.Table:
    recipe = recipes[args.granularity or format.SHORT]
    rows, lengths = [], []
    for path in args.videos:
        frames, duration_ms = whole_video(path, recipe.frames, model.image_tower.size)
        frames = frames[None].to(accelerator.device)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=accelerator.device)
        rows.append(model.encode_video(frames, mask, recipe.iter[VIDEO]).float())
        lengths.append(duration_ms)
    return pa.table({"video": args.videos, "duration_ms": lengths, "embedding": _column(torch.cat(rows))})


def whole_video(path: str, count: int, size: int) -> tuple[Tensor, int]:
    """Evenly spread frames of a video file as a model takes them, uint8 [count, 3, size, size], and its duration in
    milliseconds. UserError where it cannot be read."""
    from shards import video  # decoders, which nothing else here needs

    try:
        recipe = video.Recipe(per_clip=count, short_side=size)
        (clip,) = video.read_clips(path, [video.Request(path, None, None)], recipe)
    except (OSError, video.VideoError) as error:
        raise UserError(f"--videos {path}: {error}") from None
    if isinstance(clip, video.Failure):
        raise UserError(f"--videos {path}: {clip.message}")
    frames = np.stack([fit(frame, size, (0.5, 0.5)) for frame in clip.frames])
    return torch.from_numpy(frames).permute(0, 3, 1, 2), clip.duration_ms


def _column(rows: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.cpu().numpy().ravel()), rows.shape[1])
