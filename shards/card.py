"""The dataset card, `README.md`: what a dataset holds, under which licences, and how to read it without us."""

from shards import format

CARD = "README.md"

_SHOWN_LICENSES = 40
_FIRST_FRAME = {format.SHORT: "000.jpg", format.LONG: "000.jpg", format.IMAGE: "jpg"}


def render(manifest: dict, tars: list[str]) -> str:
    """The card of a manifest; `tars` are the paths of its tars."""
    mp4 = manifest["frames"].get("format") == "mp4"
    parts = [_HEAD, _counts(manifest), _CONTENTS.format(frames="`mp4`" if mp4 else "frames (`000.jpg` ...)")]
    if tars:
        parts.append(_loading(tars, mp4))
    parts += [_licenses(manifest.get("licenses", {})), _identity(manifest), _TAIL]
    return "\n\n".join(parts) + "\n"


_HEAD = f"""# Multi-grained video-text pairs

A `{format.FORMAT}` dataset, version {format.VERSION}."""

_CONTENTS = """Each tar is a plain WebDataset shard; its `.parquet` sibling lists the samples with their byte offsets, and the
clips that failed. `manifest.parquet` lists the tars that count: read those, not a glob.

- `short`: a clip's {frames} and its caption (`txt`).
- `long`: {frames} of several clips of one source, their joined captions (`txt`) and the summary (`summary.txt`).
- `image`: a clip's middle frame (`jpg`) and its caption (`txt`).

Each sample's `json` says which clips it shows, by id, video, start and end, with all further columns of the catalog."""

_TAIL = "`gexia shards validate DIR` checks every byte; `gexia shards report DIR` draws `report.html`."


def _counts(manifest: dict) -> str:
    lines = ["| split | granularity | samples | shards | hours | MB |", "|---|---|---:|---:|---:|---:|"]
    for split, cells in sorted(manifest["counts"].items()):
        for granularity, cell in cells.items():
            counts = f"{cell['samples']:,} | {cell['shards']:,} | {cell['duration_ms'] / 3_600_000:,.2f}"
            lines.append(f"| {split} | {granularity} | {counts} | {cell['bytes'] / 1e6:,.1f} |")
    return "\n".join(lines)


def _loading(tars: list[str], mp4: bool) -> str:
    granularity = next(g for g in (format.SHORT, format.IMAGE, format.LONG) if any(f"/{g}/" in path for path in tars))
    path = next(path for path in tars if f"/{granularity}/" in path)
    frame = "mp4" if mp4 and granularity != format.IMAGE else _FIRST_FRAME[granularity]
    return f"""```python
import webdataset
for sample in webdataset.WebDataset("{path}", shardshuffle=False).decode("pil"):
    print(sample["__key__"], sample.get("txt"), sample["json"]["duration_ms"], sample["{frame}"])
```"""


def _licenses(licenses: dict[str, int]) -> str:
    names = ", ".join(f"`{name}`" for name in format.LICENSE_FIELDS)
    if not licenses:
        return f"Licences: the catalog states none (it has no column {names})."
    stated = sorted(licenses.items(), key=lambda item: (-item[1], item[0]))
    lines = ["| licence, as the catalog states it | clips |", "|---|---:|"]
    lines += [f"| {_cell(name) or 'not stated'} | {count:,} |" for name, count in stated[:_SHOWN_LICENSES]]
    if rest := stated[_SHOWN_LICENSES:]:
        lines.append(f"| {len(rest):,} others | {sum(count for _, count in rest):,} |")
    return "\n".join(lines) + f"\n\nEach sample's `json` has its clips' own {names}, where the catalog has them."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _identity(manifest: dict) -> str:
    digests = {name: manifest[name] for name in ("digest", "plan_digest", "config_digest")}
    lines = ["| | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in digests.items())]
    lines += [f"| {name} | {version} |" for name, version in sorted(manifest["versions"].items())]
    return "\n".join(lines) + "\n\nTwo datasets with one `digest` hold the same tars, byte for byte."
