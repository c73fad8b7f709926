"""`gexia doctor` says what is wrong and what to do; the training check tells a fault from none."""

import copy
import subprocess
from types import SimpleNamespace

import pytest
import torch

from trainer import doctor, selfcheck
from trainer.selfcheck import SAVED_AT, STEPS, Step


def calm_run() -> dict:
    """What `selfcheck.run` gives of a machine where all is well."""
    ids = [[f"{step}-{i}" for i in range(4)] for step in range(STEPS)]
    one = [Step(ids[s], 1.0 / (s + 1), torch.full((3,), float(s))) for s in range(STEPS)]
    two = [[Step(step.sample_ids[2 * r : 2 * r + 2], step.loss, step.weights) for step in one] for r in range(2)]
    return {1: [(one, one[SAVED_AT:])], 2: [(whole, whole[SAVED_AT:]) for whole in two]}


def test_all_well_is_all_well():
    assert not any(selfcheck.compare(calm_run()).values())


@pytest.mark.parametrize(
    "check, break_it",
    [
        ("equal batches", lambda steps: setattr(steps[1], "sample_ids", steps[1].sample_ids[:1])),
        ("equal batches", lambda steps: setattr(steps[1], "sample_ids", ["0-0", "0-1"])),
        ("loss", lambda steps: setattr(steps[2], "loss", 0.9)),
        ("gradients", lambda steps: setattr(steps[0], "weights", torch.full((3,), 1e-3))),
    ],
)
def test_a_fault_is_found_and_named(check, break_it):
    found = copy.deepcopy(calm_run())
    break_it(found[2][1][0])
    faults = selfcheck.compare(found)
    assert faults[check] and "step" in faults[check] and not [c for c, said in faults.items() if said and c != check]


def test_a_resume_that_differs_is_found():
    found = copy.deepcopy(calm_run())
    last = found[2][0][1][-1]
    found[2][0] = (found[2][0][0], [*found[2][0][1][:-1], Step(last.sample_ids, last.loss, last.weights + 1)])
    assert selfcheck.compare(found)["resume"].startswith("process 0")


def test_the_report_counts_faults_and_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "versions", lambda: iter([doctor.Finding("python", "3.8", "install a newer one")]))
    for name in ("decoders", "gpu"):
        monkeypatch.setattr(doctor, name, lambda: iter([doctor.Finding("x", "works")]))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    assert doctor.main(["--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["FIX  python: 3.8", "     -> install a newer one"]
    assert "FIX  ffmpeg: not on the path" in lines and "ok   x: works" in lines
    assert sum(line.startswith("FIX  ") for line in lines) == 5 and lines[-1] == "5 to fix"  # two tools, two disks


def test_packages_are_held_against_their_ranges():
    from packaging.requirements import Requirement

    good = doctor._packages("train", [Requirement("torch>=2"), Requirement("pytest")])
    assert good.remedy is None and "torch 2" in good.said
    bad = doctor._packages("train", [Requirement("torch>=99"), Requirement("no-such-package")])
    assert "is not >=99" in bad.said and "no-such-package is missing" in bad.said and "gexia[train]" in bad.remedy
    assert doctor._packages("train", [Requirement("no-such-package")]).remedy is None  # a part that nobody installed


def test_what_hangs_or_cannot_start_is_a_finding():
    assert doctor._last(doctor._run(["sleep", "9"], seconds=1)) == "no end after 1 s"
    assert doctor._run(["no-such-program"]).returncode == 1
    assert doctor._last(subprocess.CompletedProcess([], 3, "", "")) == "ended with exit code 3"
