"""Everything the expansion job can be told. Keys are dotted paths of these dataclasses (`frames.per_clip`)."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class InputConfig:
    """The catalog of captioned clips."""

    path: str = ""  # file, glob or fsspec URL of the table
    # internvid to youcook2: the set's own files, its videos found by id under video_root. video2dataset: tar shards.
    format: Literal[
        "auto", "jsonl", "csv", "tsv", "parquet", "video2dataset", "internvid", "webvid", "activitynet", "youcook2"
    ] = "auto"
    columns: dict[str, str] = field(default_factory=dict)  # schema name (or a new one) -> the table's column
    filter: str | None = None  # an expression over the table's columns, such as "umt_score > 0.3"
    passthrough: list[str] | None = None  # further columns kept in each sample's json; null: all
    video_root: str | None = None  # folder or URL that relative video paths start from; default: beside the table
    duplicates: Literal["drop", "refuse"] = "drop"  # rows whose clip id came before


@dataclass
class CatalogConfig:
    probe: bool = False  # find unknown durations with ffprobe before planning


@dataclass
class IntegrateConfig:
    """Which clips make one long sample (the paper's Integration)."""

    by: Literal["source", "random", "none"] = "source"  # of one source, of any (the paper's ablation), or no long samples
    min_clips: int = 2  # groups under this give short samples only
    max_clips: int = 8  # of a group
    max_seconds: float = 180.0  # of video in a group
    max_gap_seconds: float | None = None  # a longer pause between two clips of a source starts a new group
    seed: int = 0  # of by: random
    # What computes the plan, never what it holds. ray: a hash shuffle over the cluster; auto: by the catalog's size.
    engine: Literal["auto", "polars", "ray"] = "auto"


@dataclass
class SplitConfig:
    val_fraction: float = 0.0  # of sources, by a stable hash, where the catalog has no split column


@dataclass
class CompressConfig:
    """Long text -> summary (the paper's Θt)."""

    # vllm: an engine in this job's actors; openai: a server that speaks that API, `vllm serve` among them
    backend: Literal["vllm", "openai", "transformers", "extractive", "none"] = "extractive"
    model: str | None = None  # model folder or hub name; of openai: the name that the server gives it
    prompt: str | None = None  # file that replaces gex_pipeline/llm/prompt.txt
    chat_template: str | None = None  # jinja file, for models that ship none (configs/expand/vicuna_v1.5.jinja)
    max_words: int = 40  # of a summary; a longer answer keeps its leading sentences
    min_words: int = 3  # an answer of fewer is no summary
    screen: bool = True  # leave out sentences that give the model instructions (llm/screen.py)
    retries: int = 1  # generations after the first, each with its own derived seed
    temperature: float = 0.0  # of sampling; 0: the likeliest words
    max_new_tokens: int = 64  # tokens of the answer
    max_model_len: int | None = None  # tokens of prompt and answer; null: what model or server say (hosted servers do not)
    # Of the weights; auto: as they are stored; transformers: float32 on a CPU, else bfloat16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None  # vllm's name of a method; null: what the model's config says
    seed: int = 0  # of sampling
    reuse: list[str] = field(default_factory=list)  # other datasets whose summaries may be taken

    # How the work is done, never what comes out.
    batch_size: int = 32  # texts that the transformers backend generates at once
    threads: int | None = None  # of a transformers model on the CPU; null: OMP_NUM_THREADS, set by Ray to an actor's CPUs
    actors: int = 1  # processes with a model each; what each has: resources.compress
    tensor_parallel: int = 1  # GPUs that vllm spreads one model over, of those in resources.compress
    rows_in_flight: int = 4  # rows whose texts are in one engine, or on their way to the server, at once
    # Further arguments of vllm's engine (enforce_eager: true). Of an openai server's requests (top_p: 0.9): these decide
    # what comes out.
    engine: dict[str, Any] = field(default_factory=dict)
    python: str | None = None  # interpreter of another environment for these actors: `make setup-vllm` builds one
    env: dict[str, str] = field(default_factory=dict)  # their environment variables (VLLM_CPU_KVCACHE_SPACE: "4"); no secrets
    url: str | None = None  # of openai: http://host:8000/v1, without a query
    key_env: str = "OPENAI_API_KEY"  # environment variable of the actors that holds the key, in capitals; unset: no key
    requests: int = 64  # at the server at once, an actor
    timeout_seconds: float = 300.0  # of a request; of vllm: without a finished text, then the engine is started anew


@dataclass
class FetchConfig:
    """Videos that do not lie on a local disk, and members of tars."""

    scratch_gb: float = 8.0  # of a node's temporary folder, for each core that decodes; a video over half of it fails
    parallel: int = 4  # downloads at a time of each decoding core, ahead of the video that it decodes
    timeout_seconds: float = 60.0  # without a byte, then the download is made again
    retries: int = 2  # downloads after the first; then the row stays pending


@dataclass
class FramesConfig:
    # uniform: per_clip frames at even midpoints; fps: one every 1/fps s; keyframe: key frames alone, or uniform in a
    # clip without one
    policy: Literal["uniform", "fps", "keyframe"] = "uniform"
    per_clip: int = 8  # frames of a short sample, of the policy uniform
    per_long: int = 32  # most frames of a long sample
    fps: float = 1.0  # frames a second, of the policy fps
    max_per_clip: int = 64  # of the policies fps and keyframe; a clip with more gives as many, evenly spread
    short_side: int = 256  # pixels; smaller frames stay as they are
    quality: int = 90  # JPEG
    # mp4: one video a sample instead of pictures, with every frame of the clip (policy fps: with one every 1/fps s)
    format: Literal["jpg", "mp4"] = "jpg"
    crf: int = 20  # x264's quality, 0 (lossless) to 51
    # Who decodes; the next one gets what those before it cannot read
    decoders: list[Literal["pyav", "decord", "torchcodec"]] = field(default_factory=lambda: ["pyav", "decord"])
    max_megapixels: float = 67.2  # of a frame; a video beyond this, or the two next, goes to the ledger as too_large
    max_hours: float = 100.0  # of a video
    max_frames: int = 10_000_000  # of a video
    timeout_seconds: float = 30.0  # without progress, then the decoder child is killed


@dataclass
class OutputConfig:
    path: str = ""  # folder or fsspec URL of the dataset
    clips_per_shard: int | Literal["auto"] = "auto"  # clips of a plan row, which gives a shard of each granularity
    # Which samples are written
    granularities: list[Literal["short", "long", "image"]] = field(default_factory=lambda: ["short", "long", "image"])


@dataclass
class RayConfig:
    address: str | None = None  # null: a private local Ray, or the job's own cluster under `ray job submit`
    num_cpus: int | None = None  # of a private local Ray; null: all cores


@dataclass
class StageResources:
    """What Ray reserves for one task of a stage; a node runs as many at once as it has room for."""

    cpus: float  # cores
    memory_gb: float | None = None  # null: none is reserved
    gpus: float | None = None  # null: none is reserved


@dataclass
class ResourcesConfig:
    # A decoding task and those that mostly wait for storage: together never more than whole cores, or a machine with
    # one core could not run both and one with two would decode on one.
    extract: StageResources = field(default_factory=lambda: StageResources(cpus=0.95))
    compress: StageResources = field(default_factory=lambda: StageResources(cpus=0.01))
    compose: StageResources = field(default_factory=lambda: StageResources(cpus=0.01))


@dataclass
class ExpandConfig:
    """The expansion job."""

    input: InputConfig = field(default_factory=InputConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    integrate: IntegrateConfig = field(default_factory=IntegrateConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    max_failed_fraction: float = 0.5  # of clips; above it the run exits with 1
    retry_failed: bool = False  # redo rows whose ledger entries may have healed
    dry_run: bool = False  # print what the plan would make, write nothing
