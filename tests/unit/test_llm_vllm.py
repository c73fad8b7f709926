"""What the vllm backend does when its engine fails. vLLM is not in this environment, so its classes are stood in for
by ones that die and stall on command; tests/vllm has the real ones."""

import asyncio
import atexit
import importlib
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from gex_pipeline.config import CompressConfig
from gex_pipeline.errors import Transient
from gex_pipeline.summaries import LongText
from shards.errors import UserError

TEXTS = [LongText(f"s{i}", f"text {i}", [f"text {i}"]) for i in range(3)]


class EngineDead(Exception):
    pass


class Engine:
    """Each new engine takes the next of `fates`: "lives", "dies" (in its first text), "stalls", "fails" to start, or
    waits for a process that "hangs"."""

    fates: list[str] = []
    started: list["Engine"] = []

    def __init__(self):
        self.fate = Engine.fates.pop(0) if len(Engine.fates) > 1 else Engine.fates[0]
        if self.fate == "fails":
            raise RuntimeError("no memory left\nfor this model")
        if self.fate == "hangs":
            ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).wait()
            raise RuntimeError(f"the engine's process ended: {ended}")
        self.served, self.ended = 0, False
        Engine.started.append(self)

    async def generate(self, prompt, sampling, number):
        await asyncio.sleep(0.01)
        if self.fate == "dies" or self.ended:
            raise EngineDead("EngineCore encountered an issue")
        if self.fate == "stalls":
            await asyncio.sleep(60)
        self.served += 1
        made = SimpleNamespace(text=f"answer to {prompt['prompt_token_ids'][0]}", finish_reason="stop", token_ids=[1, 2])
        yield SimpleNamespace(outputs=[made], prompt_token_ids=prompt["prompt_token_ids"])

    def shutdown(self):
        self.ended = True


@pytest.fixture
def make(monkeypatch, tmp_path):
    """fates -> a backend over engines with these fates."""
    settings = SimpleNamespace(model_config=SimpleNamespace(max_model_len=100, dtype="float32", quantization=None))
    arguments = SimpleNamespace(create_engine_config=lambda usage: settings)
    stand_ins = {
        "vllm": {"AsyncEngineArgs": lambda **_: arguments, "RequestOutput": object, "SamplingParams": SimpleNamespace},
        "vllm.config": {"VllmConfig": object},
        "vllm.inputs": {"tokens_input": lambda tokens: {"prompt_token_ids": tokens}},
        "vllm.usage": {},
        "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(LLM_CLASS=0)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY=0)},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_vllm_config=lambda settings, **_: Engine())},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDead},
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    vllm_backend = importlib.import_module("gex_pipeline.llm.vllm_backend")

    class Chat:
        def __init__(self, folder, config, prompt):
            self.digest = "d"

        def tokens(self, text):
            return [int(text.sample_id[1:])]

        def check_context(self, context):
            pass

    monkeypatch.setattr(vllm_backend, "Chat", Chat)
    (tmp_path / "config.json").touch()

    def backend(*fates):
        Engine.fates, Engine.started = list(fates), []
        return vllm_backend.VllmBackend(CompressConfig(model=str(tmp_path), timeout_seconds=0.3), None)

    yield backend
    del sys.modules["gex_pipeline.llm.vllm_backend"]  # it holds the stand-ins


def answers(backend) -> list[str]:
    return [result.text for result in backend.generate(TEXTS, [1, 2, 3], 0.0)]


@pytest.mark.parametrize("fate", ["dies", "stalls"])
def test_a_lost_engine_is_replaced_and_no_text_is_lost(make, fate):
    backend = make(fate, "lives")
    assert answers(backend) == answers(backend) == ["answer to 0", "answer to 1", "answer to 2"]
    first, second = Engine.started
    assert first.ended and not second.ended and second.served == 6


def test_rows_in_flight_replace_a_lost_engine_once(make):
    backend, made = make("dies", "lives"), []
    rows = [threading.Thread(target=lambda: made.append(answers(backend))) for _ in range(4)]
    for row in rows:
        row.start()
    for row in rows:
        row.join()
    assert len(made) == 4 and len(Engine.started) == 2 and Engine.started[1].served == 12


def test_a_row_that_loses_two_engines_stays_pending_and_the_next_may_go_on(make):
    backend = make("dies", "dies", "lives")
    with pytest.raises(Transient, match="vLLM's engine was lost 2 times under this row: EngineCore encountered"):
        answers(backend)
    assert len(answers(backend)) == 3


def test_an_engine_that_does_not_come_back_leaves_rows_pending(make):
    with pytest.raises(Transient, match="lost and does not start again: no memory left for this model"):
        answers(make("dies", "fails"))


def test_an_engine_that_never_starts_ends_the_run(make):
    with pytest.raises(UserError, match="vLLM's engine does not start: no memory left for this model"):
        make("fails")


def test_an_engine_that_is_closed_is_ended_and_let_go_of(make, monkeypatch):
    forgotten = []
    monkeypatch.setattr(atexit, "unregister", forgotten.append)
    backend = make("lives")
    backend.close()
    assert Engine.started[0].ended and backend.engine is None and forgotten == [backend.close]


def test_an_engine_whose_start_hangs_is_ended(make, monkeypatch):
    backend = make("dies", "hangs")
    monkeypatch.setattr(sys.modules["gex_pipeline.llm.vllm_backend"], "START_SECONDS", 1.0)
    with pytest.raises(Transient, match="does not start again: the engine's process ended: -9"):
        answers(backend)


def test_a_watchdog_ends_what_it_guards_when_its_owner_is_killed(tmp_path):
    """A process whose child would outlive it, as vLLM's engine does."""
    code = (
        "import subprocess, sys, psutil; from gex_pipeline.llm import watchdog\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "watchdog.guard([psutil.Process(child.pid)])\n"
        "print(child.pid, flush=True); child.wait()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.wait()
    gone, alive = psutil.wait_procs([child], timeout=60)
    assert gone and not alive
