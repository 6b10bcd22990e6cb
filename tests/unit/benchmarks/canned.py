"""A little OpenAI-compatible server whose answers a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], str | int | dict[str, Any]]
"""From a request's body to the answer's text, or fields of its message, or an HTTP status."""


class Canned:
    """What was asked, and where."""

    def __init__(self, reply: Reply, *, owner: str = "vllm") -> None:
        self.reply = reply
        self.owner = owner
        self.asked: list[dict[str, Any]] = []
        self.model = "org/tiny"
        self.lock = threading.Lock()
        self.base_url = ""


@contextmanager
def canned(reply: Reply, **options: Any) -> Iterator[Canned]:
    state = Canned(reply, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                self._send(404, {"detail": "Not Found"})
                return
            card = {"id": state.model, "object": "model", "created": 0, "owned_by": state.owner}
            self._send(200, {"object": "list", "data": [card]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if body["model"] != state.model:
                self._send(404, {"error": {"message": f"no model {body['model']}", "code": 404}})
                return
            with state.lock:
                state.asked.append(body)
            said = state.reply(body)
            if isinstance(said, int):
                self._send(said, {"error": {"message": f"failed with {said}", "code": said}})
                return
            fields = said if isinstance(said, dict) else {"content": said}
            message = {"role": "assistant", **fields}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self._send(
                200,
                {
                    "id": f"chatcmpl-{body.get('request_id', 'none')}",
                    "object": "chat.completion",
                    "created": 0,
                    "model": state.model,
                    "choices": [choice],
                    "usage": usage,
                },
            )

        def _send(self, status: int, value: Any) -> None:
            raw = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    state.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
