"""The sample from which a dry run estimates; the estimate itself is held against a real run in integration/test_expand."""

import pytest
from test_plan import catalog_of, configured, large_catalog

from gex_pipeline import dry_run, plan


def groups(planned):
    """Groups as lists of clip ids, in order."""
    found = []
    for clip, position in zip(planned.index, planned.layout["position"]):
        if position == 0:
            found.append([])
        found[-1].append(planned.clips["clip_id"][int(clip)])
    return found


@pytest.mark.parametrize("by", ["source", "random", "none"])
def test_the_sample_is_whole_groups_of_the_plan_always_the_same(by):
    planned = plan.build(large_catalog(3_000), configured(by=by))
    part = dry_run.sample(planned)
    assert dry_run.SAMPLE_CLIPS <= part.counts["clips"] < dry_run.SAMPLE_CLIPS + 8
    assert {tuple(group) for group in groups(part)} <= {tuple(group) for group in groups(planned)}
    assert part.counts == {
        "rows": 1,
        "clips": len(part.index),
        "groups": len(groups(part)),
        "long": 0 if by == "none" else len(groups(part)),
    }
    assert groups(dry_run.sample(planned)) == groups(part)


def test_a_small_plan_is_its_own_sample(tmp_path):
    planned = plan.build(catalog_of([("a", 0, 1), ("b", 0, 1), ("b", 2, 1)]), configured())
    part = dry_run.sample(planned)
    assert sorted(groups(part)) == sorted(groups(planned)) and part.counts["long"] == 1
    assert plan.read_row(str(tmp_path), plan.write(part, str(tmp_path))["rows"] - 1).num_rows == 3
