"""200 requests at once at a running server: half are abandoned while they stream, some are too long,
some are malformed. Asserts that every other one is answered, that no KV page is left in use, and,
with the server's process id, that its memory does not grow: it swings by what meets what in a round,
but is no higher on average in the last half of the rounds than in the first.

    python3 stress.py http://127.0.0.1:30000 [PID [ROUNDS]]

Needs nothing but Python's own library. One line a round; the first failure ends it with exit code 1.
"""

import asyncio
import json
import pathlib
import random
import statistics
import sys
import time
import urllib.parse
import urllib.request

BASE = urllib.parse.urlsplit(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
PID = sys.argv[2] if len(sys.argv) > 2 else None
N_ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 10
N_REQUESTS = 200
# Of a server whose every request was cancelled: until its last step has ended.
DRAIN_LIMIT_S = 30
# Of the mean memory after a round, from the first half of the rounds to the last.
GROWTH_LIMIT = 1.05


def get(path):
    with urllib.request.urlopen(BASE._replace(path=path).geturl(), timeout=30) as answer:
        return answer.read().decode()


MODEL = json.loads(get("/v1/models"))["data"][0]["id"]


def body(kind, generator):
    words = " ".join(generator.choice(["the", "sea", "village", "서울", "하늘"]) for _ in range(8))
    fields = {"model": MODEL, "prompt": words, "max_tokens": generator.randint(4, 40), "stream": True}
    fields |= {"temperature": generator.choice([0, 0.8]), "ignore_eos": True}
    if kind == "too long":
        fields["prompt"] = "word " * 200_000
    if kind == "malformed":
        return generator.choice([b"{", b'{"prompt": 7}', b"[]", json.dumps(fields | {"top_p": 5}).encode()])
    return json.dumps(fields).encode()


async def post(kind, generator):
    """What became of one request: its status and, for a stream, whether it ended as it should."""
    content = body(kind, generator)
    reader, writer = await asyncio.open_connection(BASE.hostname, BASE.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {BASE.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    try:
        await writer.drain()
        status = int((await reader.readline()).split()[1])
        if kind == "abandoned":
            await reader.read(generator.randint(1, 600))
            return kind, status, True
        rest = (await reader.read()).decode()
    finally:
        writer.transport.abort()
    if status == 200:
        return kind, status, "data: [DONE]" in rest
    return kind, status, '"error"' in rest and '"message"' in rest


def metric(name):
    lines = [line for line in get("/metrics").splitlines() if line.startswith(name)]
    assert lines, f"/metrics has no {name}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def memory_bytes():
    status = pathlib.Path(f"/proc/{PID}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


async def play(index):
    generator = random.Random(index)
    kinds = ["abandoned"] * (N_REQUESTS // 2) + ["too long"] * 10 + ["malformed"] * 20
    kinds += ["whole"] * (N_REQUESTS - len(kinds))
    generator.shuffle(kinds)
    started = time.monotonic()
    outcomes = await asyncio.gather(*(post(kind, random.Random(f"{index} {i}")) for i, kind in enumerate(kinds)))
    counts = {}
    for kind, status, is_sound in outcomes:
        assert is_sound, f"{kind}: status {status}, the answer is not whole"
        expected = {"too long": 400, "malformed": 400}.get(kind, 200)
        assert status == expected, f"{kind}: status {status}"
        counts[f"{kind} {status}"] = counts.get(f"{kind} {status}", 0) + 1
    deadline = time.monotonic() + DRAIN_LIMIT_S
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "engine_kv_pages_used")
    while any(left := [metric(name) for name in gauges]):
        assert time.monotonic() < deadline, f"after {DRAIN_LIMIT_S} s: {dict(zip(gauges, left))}"
        await asyncio.sleep(0.1)
    shown = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    return f"{shown}; {time.monotonic() - started:.1f} s; running, waiting, KV in use: {left}"


def main():
    memory = []
    for index in range(N_ROUNDS):
        line = asyncio.run(play(index))
        if PID is not None:
            memory.append(memory_bytes())
            line += f"; memory {memory[-1] / 2**20:.1f} MiB"
        print(f"round {index}: {line}", flush=True)
    half = len(memory) // 2
    if half > 0:
        growth = statistics.mean(memory[half:]) / statistics.mean(memory[:half])
        print(f"memory of the last half of the rounds: {growth:.3f} times that of the first", flush=True)
        assert growth <= GROWTH_LIMIT, f"memory grew by {growth:.3f}, the limit is {GROWTH_LIMIT}"
    print("PASS")


if __name__ == "__main__":
    main()
