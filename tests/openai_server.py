"""A real local HTTP server that speaks OpenAI's API and misbehaves in every way that servers do."""

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-key"


def answer(text: str) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Answers each request for a summary with the next of `script`, then with its last word for ever.

    A word is a status code (`(status, headers)`), "drop", "garbage", "empty", a number of seconds to wait, a function
    that makes another answer of the right one, or "ok". Requests that hold `refused` get a 400.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self.asked, self.models = deque(["ok"]), [], [{"id": "m", "object": "model", "max_model_len": 4096}]
        self.says, self.refused = "Summary of {}", "(never said)"  # {}: what it was asked
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args):
        """A client that gave up is part of the play."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_word(self):
        with self.lock:
            return self.script.popleft() if len(self.script) > 1 else self.script[0]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, status, body: bytes, headers=None):
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.server.models is None:
            return self.reply(404, b"{}")
        if isinstance(self.server.models, int):
            return self.reply(self.server.models, json.dumps({"error": {"message": f"no: {KEY}"}}).encode())
        self.reply(200, json.dumps({"object": "list", "data": self.server.models}).encode())

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.asked.append((time.monotonic(), self.headers["authorization"], request))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        done = self.answer_to(request)
        with server.lock:  # before the answer: it lets the client ask again
            server.at_once -= 1
        if done is None:
            return self.connection.close()
        self.reply(*done)

    def answer_to(self, request):
        """Status, body and headers; None: none at all."""
        word, said = self.server.next_word(), request["messages"][-1]["content"].splitlines()[-1]
        if self.server.refused in said:
            word = (400, {})
        if isinstance(word, tuple):
            return word[0], json.dumps({"error": {"message": f"refused with {KEY}"}}).encode(), word[1]
        if word == "drop":
            return None
        if word == "garbage":
            return 200, b'{"choices": [{"mess'
        if word == "empty":
            return 200, json.dumps(answer("") | {"choices": []}).encode()
        if isinstance(word, (int, float)):
            time.sleep(word)
        right = answer(self.server.says.format(said))
        return 200, json.dumps(word(right) if callable(word) else right).encode()
