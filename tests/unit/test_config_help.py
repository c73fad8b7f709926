"""`--help` says of every key what it means."""

import dataclasses
import typing

import pytest

from gex_pipeline import options
from gex_pipeline.assess import AssessConfig
from gex_pipeline.config import ExpandConfig
from shards.config_help import comments
from trainer.config import EvaluateConfig, PretrainConfig
from trainer.finetune_config import FinetuneConfig


def keys(config_class, prefix=""):
    for name, kind in typing.get_type_hints(config_class).items():
        yield from keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]


@pytest.mark.parametrize("config_class", [ExpandConfig, AssessConfig, PretrainConfig, FinetuneConfig, EvaluateConfig])
def test_every_key_has_a_comment(config_class):
    assert not set(keys(config_class)) - comments(config_class).keys()


def test_help_shows_the_comments(capsys):
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "file, glob or fsspec URL of the table (type: str" in shown
    assert "keyframe: key frames alone, or uniform in a clip without one (type:" in shown
