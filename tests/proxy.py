"""An HTTP server between a client and what answers it, which delays, cuts, drops and refuses on demand."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer(b"")

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body):
        proxy = self.server.proxy
        fault = proxy.record(self.command, self.path, self.headers, body)
        if fault == "drop":
            self.close_connection = True
            return
        if isinstance(fault, int):
            self._send(fault, {"Retry-After": "1"} if fault == 429 else {}, b'{"error": {"message": "not now"}}')
            return
        if fault == "delay":
            time.sleep(0.3)
        status, headers, content = proxy.answer(self.command, self.path, self.headers, body)
        self._send(status, headers, content, fault)
        proxy.done()

    def _send(self, status, headers, content, fault=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        # A client can tell by its length that a "cut" answer is cut, and a "garbled" one only by what is in it.
        if fault != "garbled":
            self.send_header("Content-Length", str(len(content)))
        if fault in ("cut", "garbled"):
            self.close_connection = True
            self.send_header("Connection", "close")
            content = content[: len(content) // 2]
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Proxy:
    """What was asked, and how often at a time; ``faults`` are for the requests to /completions, in their order."""

    def __init__(self, answer, faults):
        self.answer = answer
        self.faults = list(faults)
        self.requests = []
        self.busy = self.most = 0
        self._lock = threading.Lock()

    def record(self, method, path, headers, body):
        with self._lock:
            self.requests.append((time.monotonic(), method, path, dict(headers), body))
            fault = self.faults.pop(0) if self.faults and path.endswith("/completions") else None
            if fault is None or fault in ("delay", "cut", "garbled"):
                self.busy += 1
                self.most = max(self.most, self.busy)
            return fault

    def done(self):
        with self._lock:
            self.busy -= 1


@contextmanager
def serve(answer, faults=()):
    """A proxy on a free port of the loopback: (its address, the Proxy).

    Args:
        answer: Called with (method, path, headers, body); gives (status, headers, content).
        faults: A status, "delay", "cut", "garbled", "drop" or None, for one request each.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.proxy = Proxy(answer, faults)
    server.handle_error = lambda *_: None  # a client that has gone away
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", server.proxy
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


def forward(address):
    """An answer for :func:`serve`: what the server at the address says."""
    place = urlsplit(address)

    def answer(method, path, headers, body):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=300)
        try:
            kept = {name: headers[name] for name in ("Content-Type", "Authorization") if name in headers}
            connection.request(method, path, body or None, kept)
            with connection.getresponse() as response:
                kind = response.headers.get("Content-Type", "application/json")
                return response.status, {"Content-Type": kind}, response.read()
        finally:
            connection.close()

    return answer


def logprob(token, place):
    """What :func:`vllm` gives for a token at a place."""
    return -((token * 2654435761 + place * 40503) % 1000) / 500


def vllm(tokenizer, *, cards=None, key=None, change=None):
    """An answer for :func:`serve` that speaks as vLLM's server does, with log-probabilities made up from the ids.

    Args:
        tokenizer: For /tokenize; None for a server without it.
        cards: The models; None for one.
        key: The key that it wants.
        change: Called with the choices of an answer to completions and the request; gives what to answer in the place
            of them, or (status, content).
    """
    cards = cards or [{"id": "policy", "root": "/models/policy", "parent": None, "max_model_len": 513}]

    def answer(method, path, headers, body):
        asked = json.loads(body) if body else {}
        if key and path.startswith("/v1") and headers.get("Authorization") != f"Bearer {key}":
            return 401, {}, b'{"error": "Unauthorized"}'
        if path == "/version":
            return 200, {}, b'{"version": "0.0.0"}'
        if path == "/v1/models":
            return 200, {}, json.dumps({"object": "list", "data": cards}).encode()
        if path == "/tokenize" and tokenizer is not None:
            ids = tokenizer(asked["prompt"], add_special_tokens=asked["add_special_tokens"])["input_ids"]
            return 200, {}, json.dumps({"tokens": ids, "count": len(ids)}).encode()
        if path != "/v1/completions":
            return 404, {}, b'{"detail": "Not Found"}'
        choices = [
            {
                "index": number,
                "text": "!",
                "prompt_logprobs": [
                    {str(token): {"logprob": logprob(token, place), "rank": 1, "decoded_token": "?"}} if place else None
                    for place, token in enumerate(ids)
                ],
            }
            for number, ids in enumerate(asked["prompt"])
        ]
        changed = change(choices, asked) if change else None
        if isinstance(changed, tuple):
            return changed[0], {}, changed[1]
        return 200, {}, json.dumps({"choices": choices if changed is None else changed}).encode()

    return answer
