"""What a run came to: printed at its end, and stored as `run.json`."""

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from gex_pipeline import summaries
from shards import format, publish, storage

RUN_FILE = "run.json"


@dataclass
class Work:
    """What one run did: rows that it committed, rows still pending (row -> why), when each stage had a row in hand
    ([start, end] a row, seconds since 1970), the summaries of its rows (compress.COUNTS), and how many it generated of
    each row, pending ones included."""

    started: float = field(default_factory=time.time)
    rows: int = 0
    pending: dict[int, str] = field(default_factory=dict)
    spans: defaultdict = field(default_factory=lambda: defaultdict(list))
    summaries: Counter = field(default_factory=Counter)
    generated: Counter = field(default_factory=Counter)


def conclude(root: str, manifest: dict, counts: dict, catalog_kinds: dict[str, int], work: Work) -> dict:
    """The run's account, from the commit records and the catalog's counts; stored as run.json."""
    records = publish.read_commits(root)
    kinds = Counter(catalog_kinds)
    for record in records:
        kinds.update({kind: n for kind, n in record["status_dict"].items() if kind != "success"})
    tried = counts["rows_in"] - counts["filtered"] - counts["duplicates"]
    failed = sum(kinds.values())
    run = {
        "granularities": _granularities(manifest),
        "catalog": counts,
        "failures": dict(kinds.most_common()),
        "failed_fraction": round(failed / tried, 6) if tried else 0.0,
        "represented": sum(record["successes"] for record in records),
        "policy_fallbacks": sum(record["policy_fallbacks"] for record in records),
        "rows": {"committed": len(records), "this_run": work.rows, "pending": len(work.pending)},
        "pending": {str(row): why for row, why in sorted(work.pending.items())},
        "summaries": {name: int(count) for name, count in work.summaries.items()},
        "stored_bytes": summaries.store_size(root),
        "long_texts": _long_texts(records),
        "busy_seconds": {stage: round(covered(spans), 2) for stage, spans in work.spans.items() if spans},
        "wall_seconds": round(time.time() - work.started, 2),
        "digest": manifest["digest"],
    }
    document = json.dumps(run, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes_atomic(storage.join(root, RUN_FILE), document.encode())
    return run


def _long_texts(records: list[dict]) -> dict:
    """What the summaries of all rows came to (`summaries.account`)."""
    total = summaries.account([])
    for record in records:
        for name, value in (record["summaries"] or {}).items():
            total[name] = dict(Counter(total[name]) + Counter(value)) if name == "rejected" else total[name] + value
    return total


def covered(spans: list) -> float:
    """Length of the union of [start, end] spans: how long a stage was at work, on however many rows at once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(map(tuple, spans)):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _granularities(manifest: dict) -> dict:
    total = {g: {"samples": 0, "bytes": 0, "duration_ms": 0} for g in format.GRANULARITIES}
    for cells in manifest["counts"].values():
        for granularity, cell in cells.items():
            for name in total[granularity]:
                total[granularity][name] += cell[name]
    return {granularity: cell for granularity, cell in total.items() if cell["samples"]}


def _guarded(texts: dict) -> str:
    """What the guards had to do; nothing where they had nothing."""
    said = [", ".join(f"{guard} {n:,}" for guard, n in sorted(texts["rejected"].items()))] if texts["rejected"] else []
    named = {"in_pieces": "made in pieces", "fallback": "fell back to sentences of the text", "screened": "sentences screened"}
    return "; ".join(said + [f"{texts[name]:,} {words}" for name, words in named.items() if texts[name]])


def lines(run: dict, root: str) -> list[str]:
    """The account for a reader."""
    out = []
    for granularity, cell in run["granularities"].items():
        hours, megabytes = cell["duration_ms"] / 3_600_000, cell["bytes"] / 1e6
        out.append(f"{granularity:>8}  {cell['samples']:>9,} samples  {hours:>9,.2f} h  {megabytes:>9,.1f} MB")
    catalog = run["catalog"]
    out.append(
        f"   clips  {catalog['rows_in']:,} rows in = {catalog['filtered']:,} filtered + {catalog['duplicates']:,} "
        f"duplicates + {sum(run['failures'].values()):,} failed + {run['represented']:,} represented"
        + (" + pending" if run["pending"] else "")
    )
    if run["failures"]:
        out.append("  failed  " + ", ".join(f"{kind} {n:,}" for kind, n in run["failures"].items()))
    if run["policy_fallbacks"]:
        out.append(f"  frames  {run['policy_fallbacks']:,} clips have no key frame and got evenly spaced frames instead")
    rows = run["rows"]
    out.append(f"    rows  {rows['committed']:,} committed ({rows['this_run']:,} by this run), {rows['pending']:,} pending")
    for row, why in list(run["pending"].items())[:3]:
        out.append(f" pending  row {row}: {why}")
    if texts := run["summaries"].get("texts"):
        made, size = run["summaries"]["generated"], run["summaries"]["bytes"] / 1e6
        out.append(
            f"   texts  {made:,} summaries generated, {texts - made:,} taken from the store or equal ones; {size:,.2f} MB"
        )
    elif (kept := run["long_texts"]["ok"] + run["long_texts"]["fallback"]) and not rows["this_run"] + rows["pending"]:
        size = run["stored_bytes"] / 1e6
        out.append(f"   texts  all rows were done already: {kept:,} summaries, {size:,.2f} MB in the store")
    if said := _guarded(run["long_texts"]):
        out.append(f"  guards  {said}")
    busy = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in run["busy_seconds"].items()) or "nothing to do"
    out.append(f"    time  {run['wall_seconds']:.1f} s; busy: {busy}")
    if run["failures"]:
        out.append(
            f"    next  {storage.join(root, 'errors')} says which clips failed and why; --retry_failed true redoes their rows"
        )
    if run["pending"]:
        out.append("    next  start the same command again: pending rows are tried, committed ones are kept")
    out.append(f"    next  gexia shards report {root}")
    return out
