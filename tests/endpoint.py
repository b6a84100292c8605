"""An OpenAI-compatible endpoint on loopback whose faults are scripted, and that counts what was paid for.

An answer counts as paid once all of it was sent.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["_Handler", dict], bool]
"""Handles a request in place of a right answer; returns whether it did."""


def worse(body: dict) -> str:
    """Write what was asked for: as many distinct answers as the schema says, or one."""
    text = body["messages"][-1]["content"]
    if "Rating" in json.dumps(body["messages"]) and "[[" in json.dumps(body["messages"]):
        return "It is fair. Rating: [[4]]"
    if "OPEN-ENDED" in text:
        return "CLOSED-ENDED"
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    mark = abs(hash(text)) % 997
    if schema is None or "answers" not in schema.get("properties", {}):
        return f"a wrong answer {mark} drawn by {random.random()}"
    count = schema["properties"]["answers"]["maxItems"]
    start = 100 * len(body["messages"])
    numbers = range(start, start + count)
    return json.dumps({"answers": [f"wrong {mark} because {i} is {i * i} and not {i * 7}" for i in numbers]})


class Endpoint:
    """What the server did and is to do."""

    def __init__(self) -> None:
        self.script: list[Fault] = []
        """One for each coming request, until there are none left."""
        self.answer: Callable[[dict], str] = worse
        self.complete: Callable[[dict], dict] = lambda asked: completion(self.answer(asked))
        """What is sent where no fault is scripted."""
        self.file_fault: Fault | None = None
        """Handles the request for a batch's file."""
        self.chance: Callable[[], Fault | None] = lambda: None
        self.hold = threading.Event()
        self.paid: Counter[str] = Counter()
        """Answers sent, by the request's text."""
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.busiest = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_lines: Callable[[list[dict]], tuple[list[dict], list[dict]]] = _answered
        self.batch_end: dict[str, Any] = {}
        """What a batch says of itself in the end, in place of what it came to."""
        self.polls = 2
        """How often a batch says that it is not done."""
        self.pages: dict[str, dict] = {}
        """What GET answers, by path."""
        self.path: str | None = None
        """The one path that POST answers; None for any."""
        self.lock = threading.Lock()
        self.url = ""


def _answered(lines: list[dict]) -> tuple[list[dict], list[dict]]:
    """Answer every request of a batch, the last first."""
    return [{"custom_id": line["custom_id"], "response": _whole(line["body"])} for line in lines][::-1], []


def _whole(body: dict) -> dict:
    return {"status_code": 200, "body": completion(worse(body))}


def completion(text: str | None, finish: str = "stop", refusal: str | None = None) -> dict:
    message = {"role": "assistant", "content": text} | ({"refusal": refusal} if refusal else {})
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "worse-1",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    at: Endpoint

    def log_message(self, *parts: object) -> None: ...

    def send(self, status: int, body: bytes | dict, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if found := re.search(r"/batches/([\w-]+)$", self.path):
            batch = self.at.batches[found[1]]
            batch["polls"] += 1
            if batch["polls"] > self.at.polls and batch["status"] == "in_progress":
                self._finish(batch)
            self.send(200, batch)
        elif self.path.split("?")[0].endswith("/batches"):
            self.send(200, {"object": "list", "data": list(self.at.batches.values()), "has_more": False})
        elif self.at.file_fault is not None:
            self.at.file_fault(self, {})
        elif found := re.search(r"/files/([\w-]+)/content", self.path):
            self.send(200, self.at.files[found[1]], {"content-type": "application/octet-stream"})
        elif self.path in self.at.pages:
            self.send(200, self.at.pages[self.path])
        else:
            self.send(404, {"detail": "Not Found"})

    def _finish(self, batch: dict) -> None:
        lines = [json.loads(line) for line in self.at.files[batch["input_file_id"]].split(b"\n")]
        done, failed = self.at.batch_lines(lines)
        for name, some in (("output_file_id", done), ("error_file_id", failed)):
            if some:
                batch[name] = f"{name}-{batch['id']}"
                self.at.files[batch[name]] = "\n".join(json.dumps(one) for one in some).encode()
        batch["status"] = "completed" if len(done) + len(failed) == len(lines) else "expired"
        batch |= self.at.batch_end
        for line in done:
            self.at.paid[line["custom_id"]] += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.endswith("/files"):
            head = b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n"
            message = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + body)
            parts = {
                p.get_param("name", header="content-disposition"): p.get_payload(decode=True)
                for p in message.iter_parts()
            }
            name = f"file-{len(self.at.files)}"
            self.at.files[name] = parts["file"]
            self.send(
                200, {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "b", "purpose": "batch"}
            )
        elif self.path.endswith("/batches"):
            # Else who submits them for ever is never done.
            if len(self.at.batches) == 100:
                self.send(400, {"error": {"message": "too many batches"}})
                return
            asked = json.loads(body)
            name = f"batch-{len(self.at.batches)}"
            self.at.batches[name] = {
                "id": name,
                "object": "batch",
                "status": "in_progress",
                "created_at": 0,
                "polls": 0,
                **asked,
            }
            self.send(200, self.at.batches[name])
        elif self.at.path not in (None, self.path):
            self.send(404, {"detail": "Not Found"})
        else:
            self._complete(json.loads(body))

    def _complete(self, asked: dict) -> None:
        at = self.at
        with at.lock:
            at.requests.append(asked)
            at.headers.append({key.lower(): value for key, value in self.headers.items()})
            at.busy += 1
            at.busiest = max(at.busiest, at.busy)
            fault = at.script.pop(0) if at.script else at.chance()
        try:
            if at.hold.is_set():
                time.sleep(60)
            if fault is not None and fault(self, asked):
                return
            answer = at.complete(asked)
            # Counted first: who has read the whole answer may look at the count at once.
            paid = Counter([json.dumps(asked.get("messages")) + str(asked.get("seed"))])
            with at.lock:
                at.paid += paid
            try:
                self.send(200, answer)
            except (BrokenPipeError, ConnectionResetError):
                with at.lock:
                    at.paid -= paid
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with at.lock:
                at.busy -= 1


@contextmanager
def serving() -> Iterator[Endpoint]:
    at = Endpoint()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"at": at}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    at.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield at
    finally:
        server.shutdown()
        server.server_close()


def status(code: int, message: str = "not now", more: dict | None = None, **headers: str) -> Fault:
    """Answer with an error."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def fault(handler: _Handler, asked: dict) -> bool:
        handler.send(code, {"error": {"message": message, "type": "x", "code": None, **(more or {})}}, named)
        return True

    return fault


def body(content: bytes | dict, kind: str = "application/json") -> Fault:
    """Answer 200 with something else."""

    def fault(handler: _Handler, asked: dict) -> bool:
        handler.send(200, content, {"content-type": kind})
        return True

    return fault


def hang_up(handler: _Handler, asked: dict) -> bool:
    """Promise an answer and close the line in the middle of it."""
    content = json.dumps(completion("half of it")).encode()
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()
    return True


def stream(chunk: bytes, times: int, pause: float = 0, **headers: str) -> Fault:
    """Answer 200 with a body in many pieces, which no client should wait for."""

    def fault(handler: _Handler, asked: dict) -> bool:
        handler.send_response(200)
        for name, value in {"content-type": "application/json", "transfer-encoding": "chunked", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.close_connection = True
        try:
            for _ in range(times):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass
        return True

    return fault


def redirect(code: int, location: str) -> Fault:
    """Send the client elsewhere."""

    def fault(handler: _Handler, asked: dict) -> bool:
        handler.send(code, b"", {"location": location})
        return True

    return fault


def sleep(seconds: float) -> Fault:
    """Answer too late."""

    def fault(handler: _Handler, asked: dict) -> bool:
        time.sleep(seconds)
        return False

    return fault
