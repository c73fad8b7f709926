"""The compress stage inside the job against its engine alone: `python -m ops.bench.summarize`.

Texts are paragraphs of ActivityNet Captions, a clip a sentence, of one small video that is decoded beforehand. Ours is
the job's own pipeline over the extracted rows: the time in which the stage has rows in hand, retries and guards
included. The engine alone is vLLM's `LLM.chat` on the same prompts at once, in a process of its own, with the same
settings. Neither counts the engine's start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gex_pipeline.config import CompressConfig, ExpandConfig
from ops.bench.common import emit

MOST_CLIPS = 8
ROWS = 8


def catalog(folder: Path, paragraphs: str, texts: int) -> tuple[Path, int]:
    """A table with one source a paragraph (its number of clips, too), and the video that all clips are of."""
    video = ["-f", "lavfi", "-i", f"testsrc=size=64x64:rate=4:duration={MOST_CLIPS}", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", *video, str(folder / "v.mp4")], check=True)
    told = {name: entry["sentences"] for name, entry in json.loads(Path(paragraphs).read_text()).items()}
    chosen = [(name, told[name]) for name in sorted(told) if 2 <= len(told[name]) <= MOST_CLIPS][:texts]
    rows = [
        {"source_id": name, "clip_id": f"{name}/{i}", "video": "v.mp4", "start": i, "end": i + 1, "caption": sentence.strip()}
        for name, sentences in chosen
        for i, sentence in enumerate(sentences)
    ]
    table = folder / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table, len(rows)


def settings(options: argparse.Namespace) -> CompressConfig:
    """Of both sides."""
    return CompressConfig(
        backend="vllm",
        model=os.path.abspath(options.model),
        python=os.path.abspath(options.python),
        dtype="float32",
        max_model_len=2048,
        engine={"enforce_eager": True},
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )


def ours(table: Path, clips: int, output: str, compress: CompressConfig) -> tuple[dict, list[list[dict]]]:
    """The stage's seconds and tokens inside the job, and the prompts of its texts."""
    from gex_pipeline import catalog, compose, expand, plan, summaries, summary
    from gex_pipeline.extract import extract_row
    from gex_pipeline.llm import prompt
    from gex_pipeline.output import Output
    from gex_pipeline.progress import Progress

    config = ExpandConfig(compress=compress)
    config.input.path, config.output.path, config.output.clips_per_shard = str(table), output, -(-clips // ROWS)
    config.frames.per_clip, config.frames.per_long = 1, MOST_CLIPS
    expand.check(config)
    template = prompt.load(config.compress.prompt, config.compress.max_words)
    work, prompts = summary.Work(), []
    with Output(output) as folder, expand.cluster.Session(config.ray) as session:
        folder.claim(config)
        record = plan.write(plan.build(catalog.load(config)[0], config), folder.root)
        config.input.video_root = catalog.video_root(config.input)
        rows = folder.open_rows()
        for row in rows:
            extract_row(output, row, config)
            prompts += [template.messages(text) for text in compose.long_texts(output, row, config)]
        session.start()
        with Progress(record["clips"], 0) as progress:
            expand.process(rows, config, work, progress)
    assert not work.pending, work.pending
    lines = [line for row in rows for line in summaries.read(output, row).to_pylist()]
    counts = {name: sum(line[name] for line in lines) for name in ("prompt_tokens", "output_tokens", "attempts")}
    return counts | {"seconds": summary.covered(work.spans["compress"]), "rows": len(rows), "texts": len(lines)}, prompts


def alone(prompts: list[list[dict]], compress: CompressConfig) -> dict:
    """vLLM's own offline interface: every prompt at once. Runs where vLLM is."""
    from vllm import LLM, SamplingParams

    from gex_pipeline.llm.vllm_backend import engine_arguments

    engine = LLM(**engine_arguments(compress))
    sampling = SamplingParams(temperature=compress.temperature, max_tokens=compress.max_new_tokens, seed=compress.seed)
    started = time.monotonic()
    outputs = engine.chat(prompts, sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    made = {"output_tokens": sum(len(one.outputs[0].token_ids) for one in outputs)}
    return made | {"seconds": seconds, "prompt_tokens": sum(len(one.prompt_token_ids) for one in outputs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--paragraphs", default="../shared/data/annotations/activitynet/val_1.json")
    parser.add_argument("--model", default=".cache/smollm2")
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    compress = settings(options)
    if options.alone:
        made = alone(json.loads(Path(options.alone, "prompts.json").read_text()), compress)
        Path(options.alone, "made.json").write_text(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as folder:
        table, clips = catalog(Path(folder), options.paragraphs, options.texts)
        mine, prompts = ours(table, clips, f"{folder}/out", compress)
        Path(folder, "prompts.json").write_text(json.dumps(prompts))
        command = [compress.python, "-m", "ops.bench.summarize", "--alone", folder, "--model", options.model]
        # vLLM writes to stdout whatever it likes, so the result comes back as a file.
        done = subprocess.run(command, env=os.environ | compress.env, stdout=sys.stderr)
        if done.returncode:
            sys.exit("error: the engine alone failed; its messages are above")
        peer = json.loads(Path(folder, "made.json").read_text())
    rates = {side: counts["output_tokens"] / counts["seconds"] for side, counts in (("mine", mine), ("peer", peer))}
    rows = [("stage in the job", rates["mine"], "output tokens/s"), ("LLM.chat alone", rates["peer"], "output tokens/s")]
    for label, side in (("stage", mine), ("alone", peer)):
        rows += [(f"{label}: prompt", side["prompt_tokens"], "tokens"), (f"{label}: output", side["output_tokens"], "tokens")]
        rows += [(f"{label}: time", side["seconds"], "s")]
    ratio = rates["mine"] / rates["peer"]
    about = {"texts": mine["texts"], "rows_of_the_job": mine["rows"], "attempts": mine["attempts"]}
    emit("summarize", rows, ratio, "at least 0.9", **about)


if __name__ == "__main__":
    main()
