#!/usr/bin/env python3
"""Stands in for the engine in the tests of processes and records.

Answers what the runner asks of an engine (`fetch`, `serve`) with a canned stream, and starts
a child of its own, so that the tests can see whether whole process groups end. It writes its
pid and its child's into the file that FAKE_ENGINE_PIDS names.
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("FAKE_ENGINE_MODE", "good")
TOKEN_S = float(os.environ.get("FAKE_ENGINE_TOKEN_S", "0.001"))
# Flags that do nothing here, and one that this engine does not survive.
INACTIVE = os.environ.get("FAKE_ENGINE_INACTIVE", "").split()
MODELS = os.environ.get("FAKE_ENGINE_MODELS", "fake-7b").split()
# Which engine it stands in for, and those that answer wrongly.
NAME = os.environ.get("FAKE_ENGINE_NAME", "ours")
WRONG = os.environ.get("FAKE_ENGINE_WRONG", "").split()
# Of its weights, where it has files.
DIGEST = "f" * 64 if os.environ.get("FAKE_ENGINE_FILES") else None
for flag in ("--served-model-name", "--alias"):
    if NAME != "ours" and flag in sys.argv:
        MODELS = [sys.argv[sys.argv.index(flag) + 1]]
FATAL = os.environ.get("FAKE_ENGINE_FATAL")
# A flag that acts: how long a token takes.
if "--token-ms" in sys.argv:
    TOKEN_S = float(sys.argv[sys.argv.index("--token-ms") + 1]) / 1e3


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, text, content_type="application/json"):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if MODE == "foreign" and self.path == "/health":
            self.answer(404, "{}")
        elif MODE == "foreign" and self.path == "/server_info":
            self.answer(200, json.dumps({"model_path": "/models/fake-7b", "schedule_policy": "fcfs"}))
        elif self.path == "/health":
            self.answer(503 if MODE == "never-healthy" else 200, "")
        elif self.path == "/server_info":
            models = [
                {"requested": "fake", "used": name, "format": "gguf", "fallback_reason": None} for name in MODELS
            ]
            for model in models:
                model["sha256"] = DIGEST
            inactive = [[flag, "the fake has no use for it"] for flag in INACTIVE if flag in sys.argv]
            info = {"loaded_model": models[0], "executor": {"name": "fake", "inactive_flags": inactive}}
            if len(models) > 1:
                info["models"] = [{"name": model["used"], "model": model} for model in models]
            self.answer(200, json.dumps(info))
        elif self.path == "/v1/models":
            self.answer(200, json.dumps({"data": [{"id": name} for name in MODELS]}))
        elif self.path == "/metrics":
            self.answer(200, "vllm:num_requests_running 1\n", "text/plain")
        else:
            self.answer(404, "{}")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if MODE == "dies":
            os._exit(7)
        if MODE == "refuses":
            self.answer(400, json.dumps({"error": {"message": "no"}}))
            return
        if self.path == "/tokenize":
            text = request.get("content" if NAME == "llama.cpp" else "prompt")
            tokens = [ord(letter) for letter in text or ""]
            self.answer(200, json.dumps({"count": len(tokens), "tokens": tokens}))
            return
        if not request.get("stream"):
            self.answer(200, json.dumps({"choices": [{"text": "x", "logprobs": logprobs(request)}]}))
            return
        if MODE == "escapes":
            self.answer(400, "\x1b]0;title\x07\x9b31m\u202eno")
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        n_tokens = request["max_tokens"]
        for index in range(n_tokens):
            time.sleep(TOKEN_S)
            finish = "length" if index == n_tokens - 1 else None
            self.event(json.dumps({"choices": [{"text": "x", "finish_reason": finish}]}))
        said = 10**12 if MODE == "lies" else n_tokens
        self.event(json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": said}}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, text):
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def logprobs(request):
    """The likeliest tokens of a made-up model: those of the prompt's sum, or of another."""
    wrong = 7 if NAME in WRONG else 0
    likeliest = []
    for index in range(request["max_tokens"]):
        first = sum(request["prompt"]) + index + wrong
        likeliest.append([(f"t{(first + rank) % 50}", -0.5 - rank) for rank in range(request["logprobs"])])
    if NAME == "llama.cpp":
        entry = lambda name, value: {"token": name, "bytes": list(name.encode()), "logprob": value}
        content = [entry(*top[0]) | {"top_logprobs": [entry(*pair) for pair in top]} for top in likeliest]
        return {"content": content}
    return {"tokens": [top[0][0] for top in likeliest], "top_logprobs": [dict(top) for top in likeliest]}


def main():
    if sys.argv[1] == "--version":
        print("engine 0.0.7")
        sys.exit(0)
    if sys.argv[1] == "fetch":
        files = os.environ.get("FAKE_ENGINE_FILES")
        if os.path.exists(sys.argv[2]):
            print(f"path    {sys.argv[2]}\nsha256  {'e' * 64}\nname    other\nsource  {sys.argv[2]}")
        elif files:
            print(f"path    {files}\nsha256  {DIGEST}\nname    fake-7b-file\nsource  fake-7b")
        sys.exit(3 if MODE == "no-model" else 0)
    child = subprocess.Popen(["sleep", "600"])
    with open(os.environ["FAKE_ENGINE_PIDS"], "w") as pids:
        pids.write(f"{os.getpid()} {child.pid}\n")
    if MODE == "fails-to-start" or FATAL in sys.argv:
        print("cannot bind: all is lost", flush=True)
        sys.exit(5)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


main()
