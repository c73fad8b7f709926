"""The openai backend against a real local HTTP server that misbehaves in every way that servers do."""

import threading
import time
from collections import deque

import pytest
from openai_server import KEY, Server

from gex_pipeline import llm
from gex_pipeline.config import CompressConfig
from gex_pipeline.errors import Transient
from gex_pipeline.llm import openai_backend, prompt
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer
from shards.errors import UserError

TEXTS = [LongText(f"s{i}", f"A man sees {i} dogs.", [f"A man sees {i} dogs."]) for i in range(8)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(openai_backend, "FIRST_DELAY", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        yield server
        server.shutdown()


def make(server, **settings):
    config = CompressConfig(backend="openai", url=server.url, model="m", **settings)
    llm.check(config)
    return llm.create(config, prompt.load(None, 40))


def ask(backend, texts=TEXTS):
    return backend.generate(texts, list(range(len(texts))), 0.5)


def test_each_text_gets_its_own_answer_in_order(server):
    results = ask(make(server, requests=3))
    assert [r.text for r in results] == [f"Summary of a man sees {i} dogs" for i in range(8)]
    assert {(r.finish_reason, r.prompt_tokens, r.output_tokens, r.model) for r in results} == {("stop", 7, 3, "m")}
    request = next(r for _, _, r in server.asked if "0 dogs" in r["messages"][-1]["content"])
    assert (request["model"], request["seed"], request["temperature"], request["max_tokens"]) == ("m", 0, 0.5, 64)
    assert {key for _, key, _ in server.asked} == {f"Bearer {KEY}"}


def test_requests_at_once_are_bounded_over_all_rows(server):
    server.script = deque([0.1])
    backend = make(server, requests=3)
    rows = [threading.Thread(target=ask, args=(backend,)) for _ in range(3)]
    for row in rows:
        row.start()
    for row in rows:
        row.join()
    assert len(server.asked) == 24 and 2 <= server.most_at_once <= 3


@pytest.mark.parametrize("word", [(429, {}), (500, {}), (503, {}), "drop", "garbage", "empty", 2.0])
def test_what_passes_is_tried_again(server, word):
    server.script = deque([word, word, "ok"])
    results = ask(make(server, timeout_seconds=1), TEXTS[:1])
    assert results[0].text == "Summary of a man sees 0 dogs" and len(server.asked) == 3


@pytest.mark.parametrize(
    "part",
    [
        {"choices": {"0": 1}},
        {"choices": ["x"]},
        {"choices": [{"message": "hello"}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": 5}]},
        {"usage": "x"},
        {"usage": {"prompt_tokens": "x"}},
    ],
    ids=str,
)
def test_an_answer_of_another_shape_is_tried_again(server, part):
    server.script = deque([lambda answer: answer | part, "ok"])
    assert ask(make(server), TEXTS[:1])[0].text == "Summary of a man sees 0 dogs" and len(server.asked) == 2


def test_waits_grow_and_retry_after_is_obeyed(server, monkeypatch):
    delay, waits = openai_backend.delay, []
    monkeypatch.setattr(openai_backend, "delay", lambda *args: waits.append(delay(*args)) or waits[-1])
    server.script = deque([(429, {"retry-after": "0.4"}), (500, {}), (500, {}), "ok"])
    ask(make(server), TEXTS[:1])
    assert waits[0] == 0.4 and 0.02 < waits[1] < waits[2] < 0.1
    times = [when for when, _, _ in server.asked]
    assert all(after - before >= wait for before, after, wait in zip(times, times[1:], waits, strict=False))


@pytest.mark.parametrize(
    "word, says",
    [((500, {}), "refused"), ("drop", "Connection"), ("garbage", "without text"), ("empty", "without text"), (2.0, "in 0.5 s")],
)
def test_a_server_that_stays_broken_leaves_the_row_pending(server, word, says):
    server.script = deque([word])
    with pytest.raises(Transient, match=says) as caught:
        ask(make(server, timeout_seconds=0.5), TEXTS[:2])
    assert KEY not in str(caught.value)
    assert 5 <= len(server.asked) <= 10


def test_a_server_that_lists_its_models_and_says_no_more_is_given_up(server, monkeypatch):
    monkeypatch.setattr(openai_backend, "TRIES", 2)
    server.script = deque([2.0] * 2 + ["ok"] + [2.0])
    backend = make(server, timeout_seconds=0.5)
    asked = []
    for _ in range(6):
        before = len(server.asked)
        try:
            ask(backend, TEXTS[:1])
            said = "answered"
        except Transient as error:
            said = "given up" if "given up" in str(error) else "silent"
        asked.append((said, len(server.asked) - before))
    assert asked == [("silent", 2), ("answered", 1), *[("silent", 2)] * 3, ("given up", 0)]


def test_one_text_that_is_refused_is_the_only_fallback_of_its_row(server):
    server.refused = "3 dogs"
    backend = make(server)
    results = ask(backend)
    assert [(r.text, r.finish_reason) for r in results if r.finish_reason != "stop"] == [("", "refused")]
    assert results[3].text == "" and len(server.asked) == len(TEXTS) + 1  # one more, whether it takes others
    server.says = "Someone watches several animals play."
    lines = Summarizer(backend.config).summarize(TEXTS)
    assert [line["status"] for line in lines] == ["ok"] * 3 + ["fallback"] + ["ok"] * 4
    assert (lines[3]["finish_reason"], lines[3]["reason"], lines[3]["rejected"]) == ("refused", "empty", ["empty", "empty"])


@pytest.mark.parametrize("status, says", [(400, "refuses every text"), (422, "refuses every text"), (401, "no summary"),
                                          (403, "no summary"), (404, "no summary")])  # fmt: skip
def test_a_server_that_refuses_every_text_leaves_the_row_pending_and_is_not_asked_again(server, status, says):
    server.script = deque([(status, {})])
    with pytest.raises(Transient, match=f"{says}.*refused with") as caught:
        ask(make(server), TEXTS[:1])
    assert len(server.asked) <= 2 and KEY not in str(caught.value)


def test_a_server_that_is_down_costs_no_waiting_and_is_found_when_it_is_back(server):
    backend = make(server, max_model_len=4096)
    url, port = server.url, server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(Transient, match=f"no summary from {url}"):
        ask(backend, TEXTS[:1])
    started = time.monotonic()
    with pytest.raises(Transient, match=f"no answer from {url}"):
        backend.fits(TEXTS[0])
    assert time.monotonic() - started < 2
    with Server(port) as again:
        again.models = None  # a server without that list
        assert backend.fits(TEXTS[0]) and ask(backend, TEXTS[:1])[0].text == "Summary of a man sees 0 dogs"
        again.shutdown()


def test_the_context_is_the_servers_and_a_long_text_does_not_fit(server):
    backend = make(server)
    assert backend.context == 4096 and backend.fits(TEXTS[0])
    many = ["A man sees dogs."] * 2000
    assert not backend.fits(LongText("long", " ".join(many), many))
    server.models[0]["max_model_len"] = 100
    with pytest.raises(UserError, match="compress.max_model_len: a context of 100 tokens is too small"):
        make(server)


@pytest.mark.parametrize("models", [None, [], [{"id": "m"}], [{"id": "m", "max_model_len": "x"}]], ids=str)
def test_a_server_that_does_not_say_its_context_needs_it_in_the_config(server, models):
    server.models = models
    with pytest.raises(UserError, match="compress.max_model_len is not set, and .* how many tokens m reads; give"):
        make(server)
    assert make(server, max_model_len=4096).context == 4096


def test_what_the_server_refuses_for_every_text_is_refused_at_start(server):
    server.models = 401
    with pytest.raises(UserError, match="compress.key_env: the server refuses OPENAI_API_KEY: .*no: [*]{3}"):
        make(server)
    server.models = [{"id": "other", "object": "model"}]
    with pytest.raises(UserError, match="compress.model: the server has no m; it has other"):
        make(server)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"url": None}, "compress.url is None"),
        ({"url": "localhost:8000"}, "compress.url is localhost:8000"),
        ({"url": "http://[::1/v1"}, r"compress.url is http://\[::1/v1"),
        ({"url": "http://host:port/v1"}, "compress.url is http://host:port/v1"),
        ({"url": "http://me:secret@host/v1"}, "compress.url holds a name, password or query"),
        ({"url": "http://host/v1?api-key=secret"}, "compress.url holds a name, password or query"),
        ({"url": "http://host/v1", "key_env": "sk-secret"}, "compress.key_env is no name of an environment variable"),
        ({"url": "http://host/v1", "key_env": "gsk_secret"}, "compress.key_env is no name of an environment variable"),
        ({"url": "http://host/v1", "model": None}, "compress.model is not set"),
    ],
)
def test_settings_that_cannot_work_are_one_line(settings, says):
    with pytest.raises(UserError, match=says) as refusal:
        llm.check(CompressConfig(**{"backend": "openai", "model": "m"} | settings))
    assert "secret" not in str(refusal.value)
