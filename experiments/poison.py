#!/usr/bin/env python3
"""Users who stream long answers while others send a server what breaks servers.

    python3 experiments/poison.py --url http://127.0.0.1:30000
    python3 experiments/poison.py --url http://127.0.0.1:30000 --requests 200 --users 20 --json poison.json

Each user streams one chat after the other for as long as the poison lasts. Meanwhile `--requests`
requests come, in an order that `--seed` decides: half of them are what programs send in the field
(chats, tools, forms, log-probabilities), half are poison, from the table engine/tests/data/poison.json
(`--skip` passes over that many of them, so that two runs can share the table). What has to hold:

- a poison is answered within `--limit-s` with a status that the table expects, and a refusal has a
  body with a message;
- no user's stream ends early or with an error: each has a finish reason, `[DONE]`, and as many tokens
  as it asked for; with --compare-texts its text is the one it had alone, before the poison (on a GPU
  the batch may change a text);
- harmless requests are answered;
- /health, asked every 250 ms over a connection of its own, always says 200;
- at the end nothing runs or waits and no KV page is held, as /metrics tells.

A table comes last; the exit code is 1 if anything failed. Needs nothing but Python's own library.

An entry of the table is a request: `completion`, `chat` or `generate` are fields over an ordinary body
for that endpoint, `body` is a whole one for `path`, `raw` and `hex` are its bytes, and `send` is all
that goes over the connection. What is large is written small:
    {"$text": "x", "times": 9}                 a text, repeated
    {"$parts": [...]}                          texts, joined
    {"$chain": "r{i}: r{next}", "times": 9}    a text for each i, joined
    {"$list": 5, "times": 9}                   a list of the same
    {"$each": "name {i}", "times": 9}          a list of one for each i
    {"$object": {"k{i}": 1}, "times": 9}       an object with a key for each i
    {"$absent": true}                          no such field
    {"$hex": "00ff"}                           bytes, in `send`
`then` says what the client does instead of reading the answer: it holds the connection, closes it,
shuts its own side, leaves in mid-stream, or drips bytes. A status of null is a connection that ends
without an answer; `bare` marks answers that come before there is a request, and have no body.
"""

import argparse
import collections
import gzip
import http.client
import json
import pathlib
import queue
import random
import socket
import sys
import threading
import time
import urllib.parse

TABLE = pathlib.Path(__file__).resolve().parents[1] / "engine" / "tests" / "data" / "poison.json"
# How many of the requests are under way at a time.
SENDERS = 8
HEALTH_EVERY_S = 0.25
# A client that holds a connection does so for this long.
HOLD_S = 8
# From the last answer until the server has to be empty.
DRAIN_LIMIT_S = 60
# Each must be 0 then; those that a server does not have are passed over.
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "engine_kv_pages_used")
TOPICS = ("the sea", "a village in the hills", "how bread is baked", "바다와 하늘", "the history of the wheel")


# --- the table ------------------------------------------------------------------------------------


def numbered(value, i):
    """Of each i: `{i}` and `{next}` in a value's text are numbers."""
    text = json.dumps(value).replace("{i}", str(i)).replace("{next}", str(i + 1))
    return json.loads(text)


def expand(value):
    """A value of the table as it is sent."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    times = range(value.get("times", 0)) if any(key.startswith("$") for key in value) else ()
    if "$text" in value:
        return value["$text"] * len(times)
    if "$parts" in value:
        return "".join(expand(part) for part in value["$parts"])
    if "$chain" in value:
        return "".join(numbered(value["$chain"], i) for i in times)
    if "$list" in value:
        return [expand(value["$list"])] * len(times)
    if "$each" in value:
        return [numbered(value["$each"], i) for i in times]
    if "$object" in value:
        pairs = [numbered(value["$object"], i) for i in times] + [value.get("last", {})]
        return {key: inner for pair in pairs for key, inner in pair.items()}
    if "$hex" in value:
        return bytes.fromhex(value["$hex"])
    merged = expand(value["$merge"]) if "$merge" in value else {}
    kept = {key: inner for key, inner in value.items() if key != "$merge" and inner != {"$absent": True}}
    return merged | {key: expand(inner) for key, inner in kept.items()}


ORDINARY = {
    "completion": ("/v1/completions", {"prompt": "hello", "max_tokens": 4}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}),
    "generate": ("/generate", {"text": "hello", "sampling_params": {"max_new_tokens": 4}}),
}


def bytes_of(part):
    part = expand(part)
    return part if isinstance(part, bytes) else part.encode()


def request_of(entry, server):
    """The bytes of an entry's request."""
    if "send" in entry:
        key = f"Authorization: Bearer {server.key}\r\n" if server.key else ""
        filled = [
            part.replace("{host}", server.netloc).replace("{key}", key) if isinstance(part, str) else part
            for part in entry["send"]
        ]
        return b"".join(map(bytes_of, filled))
    path, body = entry.get("path"), b""
    for kind, (its_path, ordinary) in ORDINARY.items():
        if kind in entry:
            path = path or its_path
            # `$absent` takes an ordinary field out.
            body = json.dumps(expand(ordinary | entry[kind])).encode()
    if "body" in entry:
        body = json.dumps(expand(entry["body"])).encode()
    body += b"".join(map(bytes_of, entry.get("raw", []))) + bytes.fromhex(entry.get("hex", ""))
    if entry.get("gzip"):
        body = gzip.compress(body)
    key = {"none": None, "wrong": "not the key"}.get(entry.get("key"), server.key)
    return server.request(entry.get("method", "POST"), path, body, entry.get("headers"), key)


# --- connections ----------------------------------------------------------------------------------


class Server:
    def __init__(self, url, key):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"--url {url}: must be http://host:port")
        self.address, self.netloc, self.key = (parts.hostname, parts.port or 80), parts.netloc, key

    def connect(self, limit_s):
        connection = socket.create_connection(self.address, timeout=limit_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def request(self, method, path, body=b"", headers=None, key=None):
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.netloc}", "Connection: close"]
        sent = {"Content-Type": "application/json", "Content-Length": len(body)} | (headers or {})
        if key:
            sent["Authorization"] = f"Bearer {key}"
        lines += [f"{name}: {value}" for name, value in sent.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def ask(self, method, path, body=None, limit_s=60.0):
        """Status and body of an ordinary request."""
        content = b"" if body is None else json.dumps(body).encode()
        with self.connect(limit_s) as connection:
            connection.sendall(self.request(method, path, content, key=self.key))
            return read_answer(connection)


def read_answer(connection):
    """Status and body; None and nothing where the connection ends without an answer."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        return answer.status, answer.read()
    except TimeoutError:
        raise
    except (http.client.HTTPException, ConnectionError, OSError, ValueError):
        return None, b""
    finally:
        answer.close()


def send_all(connection, content):
    """A server may answer, and close, before everything has come."""
    try:
        connection.sendall(content)
    except (ConnectionError, BrokenPipeError):
        pass


def drip(connection, piece, deadline):
    """Sends a little over and over, until the server has had enough."""
    while time.monotonic() < deadline:
        try:
            connection.sendall(piece)
        except OSError:
            return
        connection.settimeout(0.2)
        try:
            if connection.recv(1, socket.MSG_PEEK) is not None:
                return
        except TimeoutError:
            pass


def play(entry, server, limit_s):
    """What became of one poison: status (None: no answer) and body."""
    content, then = request_of(entry, server), entry.get("then", "read")
    connections = [server.connect(limit_s) for _ in range(entry.get("connections", 1))]
    try:
        for connection in connections:
            send_all(connection, content)
        connection, deadline = connections[0], time.monotonic() + HOLD_S
        if then == "close":
            return None, b""
        if then == "leave":
            connection.recv(2000)
            return None, b""
        if then == "shut":
            connection.shutdown(socket.SHUT_WR)
        if then in ("drip", "chunks"):
            drip(connection, b"5\r\nhello\r\n" if then == "chunks" else b"x", deadline)
        if then in ("hold", "drip", "chunks"):
            return read_held(connection, entry, deadline)
        return read_answer(connection)
    finally:
        for connection in connections:
            connection.close()


def read_held(connection, entry, deadline):
    """The answer of a server that has lost its patience; None where it has not."""
    if None in entry["status"] and len(entry["status"]) == 1:
        time.sleep(max(0.0, deadline - time.monotonic()))
        return None, b""
    connection.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        return read_answer(connection)
    except TimeoutError:
        return None, b""


# --- judgement ------------------------------------------------------------------------------------


def events_of(body):
    """A stream's events, and whether it was told to be at its end."""
    lines = [line[5:].strip() for line in body.decode(errors="replace").splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"], "[DONE]" in lines


def status_of_stream(status, body):
    """A stream's head is sent before its error, whose kind then counts as the status."""
    if status != 200 or not body.startswith(b"data:"):
        return status, None
    events, is_complete = events_of(body)
    errors = [event["error"] for event in events if "error" in event]
    if errors:
        return (400 if errors[0].get("type") == "invalid_request_error" else 500), errors[0]
    return (200 if is_complete else "a torn stream"), None


def fault_of_poison(entry, server, status, body):
    """What is wrong with an answer, if something is."""
    expected = list(entry["status"])
    if entry.get("key") and server.key:
        expected = [401 if status == 200 else status for status in expected]
    judged, error = status_of_stream(status, body)
    shown = body[:300].decode(errors="replace")
    if judged not in expected:
        return f"{judged}, expected {' or '.join(map(str, expected))}: {error or shown}"
    if not isinstance(judged, int) or judged < 400 or entry.get("bare") or entry.get("then") == "shut":
        return None
    try:
        error = error or json.loads(body)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return f"{status} without an error of JSON: {shown}"
    if not isinstance(message, str) or not message:
        return f"{status} without a message: {shown}"
    if len(body) > 20_000:
        return f"{status} says {len(body)} bytes"
    return None


# --- harmless requests ----------------------------------------------------------------------------

SYSTEM = "You are the assistant of a small library. Answer in one sentence, and name a book. " * 8
TOOL = {
    "type": "function",
    "function": {
        "name": "find_book",
        "description": "Finds a book by its title",
        "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["novel", "poem"]}, "pages": {"type": "integer", "minimum": 1, "maximum": 999}},
    "required": ["kind", "pages"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA}}
HARMLESS = {
    "chat": {"temperature": 0.7, "top_p": 0.95},
    "chat of a long prompt": {"system": SYSTEM},
    "greedy": {"temperature": 0},
    "seeded": {"seed": 7, "temperature": 1, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "tools": {"tools": [TOOL]},
    "no tools": {"tools": [TOOL], "tool_choice": "none"},
    "JSON": {"response_format": {"type": "json_object"}},
    "schema": {"response_format": FORM, "max_tokens": 60},
    "log-probabilities": {"logprobs": True, "top_logprobs": 5},
    "three choices": {"n": 3, "temperature": 1},
    "stop strings": {"stop": [".", "\n\n", "END"]},
    "OpenAI's newer field": {"max_tokens": None, "max_completion_tokens": 24},
    "user": {"user": "someone", "logit_bias": {"9": -5}},
    "streamed": {"stream": True, "stream_options": {"include_usage": True}},
    "completion": {"prompt": "Once upon a time"},
    "completion with echo": {"prompt": "Once upon a time", "echo": True},
    "completion with log-probabilities": {"prompt": "Once upon a time", "logprobs": 3},
    "completions of two": {"prompt": ["Once", "upon a time"]},
}


def harmless(name, generator):
    """Path and body of a request as programs send it."""
    fields = dict(HARMLESS[name])
    system = fields.pop("system", None)
    question = f"{generator.choice(['What is', 'Tell me about', 'Who wrote of'])} {generator.choice(TOPICS)}?"
    body = {"max_tokens": generator.randint(8, 40)} | fields
    if "prompt" in body:
        return "/v1/completions", body
    messages = [{"role": "system", "content": system}] if system else []
    return "/v1/chat/completions", body | {"messages": [*messages, {"role": "user", "content": question}]}


def fault_of_harmless(body, status, content):
    if body.get("stream"):
        judged, error = status_of_stream(status, content)
        return None if judged == 200 else f"{judged}: {error or content[:300]}"
    if status != 200:
        return f"{status}: {content[:300].decode(errors='replace')}"
    choices = json.loads(content)["choices"]
    wanted = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
    if len(choices) != wanted or not all(choice["finish_reason"] for choice in choices):
        return f"{len(choices)} choices of {wanted}, or one without a finish reason"
    for choice in choices if "response_format" in body else ():
        if choice["finish_reason"] == "stop":
            try:
                json.loads(choice["message"]["content"])
            except ValueError:
                return f"no JSON: {choice['message']['content'][:200]}"
    return None


# --- the run --------------------------------------------------------------------------------------


class Run:
    def __init__(self, server, options):
        self.server, self.options = server, options
        self.jobs, self.lock, self.over = queue.Queue(), threading.Lock(), threading.Event()
        self.failures, self.outcomes, self.health_ms = [], [], []
        self.n_streams, self.n_stream_tokens, self.expected = 0, 0, {}

    def fail(self, what, why):
        with self.lock:
            self.failures.append((what, str(why)))

    def user_body(self, topic):
        return {
            "messages": [{"role": "user", "content": f"Tell me all about {topic}."}],
            "max_tokens": self.options.tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip

    def stream(self, topic):
        """One long answer; its text, or an exception that says what is wrong with it."""
        body = self.user_body(topic)
        status, content = self.server.ask("POST", "/v1/chat/completions", body, self.options.limit_s)
        if status != 200:
            raise ValueError(f"status {status}: {content[:300]}")
        events, is_complete = events_of(content)
        for event in events:
            if "error" in event:
                raise ValueError(f"error in mid-stream: {event['error']}")
        choices = [choice for event in events for choice in event["choices"]]
        reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
        usage = next((event["usage"] for event in reversed(events) if event.get("usage")), {})
        if reasons != ["length"] or not is_complete or usage.get("completion_tokens") != self.options.tokens:
            raise ValueError(f"ended early: finish reasons {reasons}, [DONE] {is_complete}, usage {usage}")
        parts = ("reasoning_content", "reasoning", "content")
        return "".join(choice["delta"].get(part) or "" for choice in choices for part in parts)

    def user(self, i):
        topic = TOPICS[i % len(TOPICS)]
        # Everyone streams at least once.
        while True:
            try:
                text = self.stream(topic)
            except (ValueError, KeyError, OSError) as error:
                self.fail(f"user {i}", error)
            else:
                with self.lock:
                    self.n_streams += 1
                    self.n_stream_tokens += self.options.tokens
                if self.options.compare_texts and text != self.expected[topic]:
                    self.fail(f"user {i}", "another text than alone")
            if self.over.is_set():
                return

    def health(self):
        while not self.over.is_set():
            began = time.monotonic()
            try:
                status, _ = self.server.ask("GET", "/health", limit_s=self.options.limit_s)
            except OSError as error:
                status = error
            took_s = time.monotonic() - began
            self.health_ms.append(1e3 * took_s)
            if status != 200:
                self.fail("/health", f"{status} after {took_s:.2f} s")
            self.over.wait(max(0.0, HEALTH_EVERY_S - took_s))

    def sender(self):
        while True:
            try:
                kind, name, job = self.jobs.get_nowait()
            except queue.Empty:
                return
            began, status = time.monotonic(), None
            try:
                status, fault = job()
            except TimeoutError:
                fault = f"no answer within {self.options.limit_s:.0f} s"
            except (ValueError, KeyError, OSError) as error:
                fault = f"{type(error).__name__}: {error}"
            outcome = {"kind": kind, "name": name, "status": status, "s": round(time.monotonic() - began, 3)}
            with self.lock:
                self.outcomes.append(outcome | ({"fault": fault} if fault else {}))
            if fault:
                self.fail(f"{kind} {name!r}", fault)

    def fill(self, table):
        """Half poison, half harmless, in the seed's order."""
        generator = random.Random(self.options.seed)
        generator.shuffle(table)
        n_poisons = self.options.requests // 2
        poisons = [table[(self.options.skip + i) % len(table)] for i in range(n_poisons)]
        names = [name for i, name in enumerate(list(HARMLESS) * self.options.requests)][: self.options.requests - n_poisons]
        jobs = [("poison", entry["name"], self.poison_job(entry)) for entry in poisons]
        jobs += [("harmless", name, self.harmless_job(name, random.Random(i))) for i, name in enumerate(names)]
        generator.shuffle(jobs)
        for job in jobs:
            self.jobs.put(job)
        return len({entry["name"] for entry in poisons})

    def poison_job(self, entry):
        def job():
            status, body = play(entry, self.server, self.options.limit_s)
            return status_of_stream(status, body)[0], fault_of_poison(entry, self.server, status, body)

        return job

    def harmless_job(self, name, generator):
        path, body = harmless(name, generator)

        def job():
            status, content = self.server.ask("POST", path, body, self.options.limit_s)
            return status, fault_of_harmless(body, status, content)

        return job

    def drain(self):
        """Waits until nothing is left in the server; what is left, where something is."""
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while True:
            _, page = self.server.ask("GET", "/metrics")
            lines = [line.rsplit(" ", 1) for line in page.decode().splitlines() if line.startswith(GAUGES)]
            left = {name: float(value) for name, value in lines if float(value) != 0}
            if not lines:
                return "/metrics has none of " + ", ".join(GAUGES)
            if not left:
                return None
            if time.monotonic() > deadline:
                return f"{DRAIN_LIMIT_S} s after the last answer: {left}"
            time.sleep(0.1)

    def go(self, table):
        for topic in TOPICS[: self.options.users]:
            self.expected[topic] = self.stream(topic)
        n_different = self.fill(table)
        began = time.monotonic()
        users = [threading.Thread(target=self.user, args=(i,)) for i in range(self.options.users)]
        senders = [threading.Thread(target=self.sender) for _ in range(SENDERS)]
        health = threading.Thread(target=self.health)
        for thread in [*users, health, *senders]:
            thread.start()
        for thread in senders:
            thread.join()
        self.over.set()
        for thread in [*users, health]:
            thread.join()
        if left := self.drain():
            self.fail("at the end", left)
        return n_different, time.monotonic() - began


def report(run, n_table, n_different, seconds):
    counts = collections.Counter((outcome["kind"], str(outcome["status"])) for outcome in run.outcomes)
    slowest = max((outcome["s"], outcome["name"]) for outcome in run.outcomes)
    rows = [("poisons sent, of the table", f"{n_different} of {n_table}")]
    rows += [(f"{kind}: {'no answer' if status == 'None' else status}", n) for (kind, status), n in sorted(counts.items())]
    rows += [
        ("users' streams finished", f"{run.n_streams}, {run.n_stream_tokens} tokens"),
        ("health: slowest of all, ms", f"{max(run.health_ms):.0f} of {len(run.health_ms)}"),
        ("slowest answer, s", f"{slowest[0]:.1f} ({slowest[1]})"),
        ("seconds", f"{seconds:.0f}"),
        ("failures", len(run.failures)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    for what, why in run.failures:
        print(f"FAILED  {what}: {why}")
    return dict(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="http://host:port of a server that runs")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--requests", type=int, default=200, help="half of them poison; default: 200")
    parser.add_argument("--users", type=int, default=20, help="who stream meanwhile; default: 20")
    parser.add_argument("--tokens", type=int, default=200, help="of each user's answers; default: 200")
    parser.add_argument("--seed", type=int, default=1, help="decides what is sent, and in which order")
    parser.add_argument("--skip", type=int, default=0, help="poisons of that order to pass over")
    parser.add_argument("--limit-s", type=float, default=120, help="for any answer; default: 120")
    parser.add_argument("--compare-texts", action="store_true", help="users' texts must be those they had alone")
    parser.add_argument("--json", metavar="FILE", help="all outcomes, written there")
    options = parser.parse_args()
    if options.requests < 2 or options.users < 1:
        parser.error("at least two requests and a user are needed")
    table = json.loads(TABLE.read_text())
    run = Run(Server(options.url, options.api_key), options)
    n_different, seconds = run.go(table)
    rows = report(run, len(table), n_different, seconds)
    if options.json:
        kept = {"summary": rows, "failures": run.failures, "health_ms": run.health_ms, "outcomes": run.outcomes}
        pathlib.Path(options.json).write_text(json.dumps(kept, indent=1, default=str) + "\n")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
