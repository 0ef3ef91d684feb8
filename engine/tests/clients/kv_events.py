"""Follows the KV events of a running engine through pyzmq and msgspec, with structs that declare the
wire form as vLLM's and SGLang's routers do, and rebuilds the set of cached blocks.

    python3 kv_events.py http://127.0.0.1:30000/v1 [EVENTS [REPLAYS]]

The server was started with --kv-events-config, and its prefix cache is flushed. EVENTS and REPLAYS are
its endpoints, tcp://127.0.0.1:5557 and tcp://127.0.0.1:5558 unless given.
"""

import re
import sys
import time
import urllib.request

import msgspec
import zmq
from checks import BASE_URL, MODEL, fetch, run

EVENTS = sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:5557"
REPLAYS = sys.argv[3] if len(sys.argv) > 3 else "tcp://127.0.0.1:5558"
# Of what takes milliseconds.
LIMIT_S = 30


class Event(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None = None
    lora_name: str | None = None


class BlockRemoved(Event):
    block_hashes: list[int | bytes]
    medium: str | None = None


class AllBlocksCleared(Event):
    pass


class Batch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Router:
    def __init__(self):
        context = zmq.Context.instance()
        self.events = context.socket(zmq.SUB)
        self.events.connect(EVENTS)
        self.events.setsockopt_string(zmq.SUBSCRIBE, "")
        self.replays = context.socket(zmq.DEALER)
        self.replays.connect(REPLAYS)
        self.decoder = msgspec.msgpack.Decoder(type=Batch)
        self.number = 0
        self.n_replayed = 0
        self.n_seen = {BlockStored: 0, BlockRemoved: 0, AllBlocksCleared: 0}
        # (hash, medium) -> (tokens, hash of the block before)
        self.blocks = {}

    def follow(self, wait_ms=50):
        """Applies a message if one comes, and those that were missed before it."""
        if not self.events.poll(wait_ms):
            return False
        _topic, number, payload = self.events.recv_multipart()
        number = int.from_bytes(number, "big")
        if number > self.number:
            self.n_replayed += len(self.replay(self.number))
        if number == self.number:
            self.apply(payload)
        return True

    def replay(self, first):
        """The batches from this number on; those that are new are applied."""
        self.replays.send_multipart((b"", first.to_bytes(8, "big")))
        numbers = []
        while True:
            assert self.replays.poll(LIMIT_S * 1000), "no answer to a replay request"
            empty, number, payload = self.replays.recv_multipart()
            assert empty == b""
            number = int.from_bytes(number, "big", signed=True)
            if number == -1:
                assert payload == b""
                return numbers
            numbers.append(number)
            if number == self.number:
                self.apply(payload)

    def apply(self, payload):
        self.number += 1
        batch = self.decoder.decode(payload)
        assert abs(batch.ts - time.time()) < 3600 and batch.data_parallel_rank == 0
        for event in batch.events:
            self.n_seen[type(event)] += 1
            if isinstance(event, BlockStored):
                size, before = event.block_size, event.parent_block_hash
                assert len(event.token_ids) == size * len(event.block_hashes)
                assert before is None or (before, event.medium) in self.blocks
                for i, block in enumerate(event.block_hashes):
                    tokens = event.token_ids[i * size : (i + 1) * size]
                    self.blocks[block, event.medium] = (tokens, before)
                    before = block
            elif isinstance(event, BlockRemoved):
                for block in event.block_hashes:
                    del self.blocks[block, event.medium]
            else:
                self.blocks.clear()

    def prefixes(self):
        """Every cached prefix as its tokens."""
        for (block, medium) in self.blocks:
            tokens = []
            while block is not None:
                page, block = self.blocks[block, medium]
                tokens = page + tokens
            yield tokens

    def until(self, what, is_so):
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"not so after {LIMIT_S} s: {what}"
            self.follow()


def metric(name):
    url = BASE_URL.removesuffix("/v1") + "/metrics"
    with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def complete(first, n_tokens=64, **fields):
    prompt = [100 + (first * 7 + i) % 400 for i in range(n_tokens)]
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "ignore_eos": True} | fields
    fetch("/v1/completions", body)
    return prompt


# Nothing listens yet, so these batches are missed.
complete(0)
ROUTER = Router()


def knows_all():
    held = metric("engine_kv_pages_cached") + metric("engine_host_kv_pages_used")
    return len(ROUTER.blocks) == held


def check_missed_batches_are_replayed():
    first = 1
    while ROUTER.number == 0:
        assert first < 1000
        complete(first)
        first += 1
        ROUTER.follow()
    assert ROUTER.n_replayed > 0
    ROUTER.until("the router knows all blocks", knows_all)


def check_a_prompts_blocks_are_stored_with_their_tokens():
    prompt = complete(200)
    n_whole = len(prompt) // 16 * 16
    ROUTER.until("the prompt is there", lambda: prompt[:n_whole] in list(ROUTER.prefixes()))


def check_a_salt_gives_other_blocks():
    before = len(ROUTER.blocks)
    complete(200, cache_salt="another client")
    ROUTER.until("as many blocks again", lambda: len(ROUTER.blocks) >= before + 4)
    prefixes = [tuple(prefix) for prefix in ROUTER.prefixes()]
    assert len(set(prefixes)) < len(prefixes), "the same tokens are there twice"


def check_evictions_are_followed():
    first = 300
    while ROUTER.n_seen[BlockRemoved] == 0:
        assert first < 2000, "nothing was evicted"
        complete(first, n_tokens=256)
        first += 1
        while ROUTER.follow(0):
            pass
    ROUTER.until("the router knows all blocks", knows_all)


def check_replays_begin_where_they_are_asked_to():
    numbers = ROUTER.replay(ROUTER.number - 2)
    assert numbers[:2] == [ROUTER.number - 2, ROUTER.number - 1], numbers
    assert ROUTER.replay(2**62) == []


def check_a_flush_clears_all_blocks():
    before = ROUTER.n_seen[AllBlocksCleared]
    request = urllib.request.Request(BASE_URL.removesuffix("/v1") + "/flush_cache", b"")
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        assert answer.status == 200
    ROUTER.until("all blocks are gone", lambda: ROUTER.n_seen[AllBlocksCleared] > before)
    assert not ROUTER.blocks


def check_no_batch_was_dropped():
    ROUTER.until("all are read", lambda: ROUTER.number == metric("engine_kv_event_batches_total"))


checks = [check for name, check in list(globals().items()) if name.startswith("check_")]
if metric("engine_kv_pages_total") > 4096:
    # Filling a larger pool takes too long; --max-total-tokens makes one smaller.
    checks.remove(check_evictions_are_followed)
run(checks)
seen = ", ".join(f"{n} {kind.__name__}" for kind, n in ROUTER.n_seen.items())
print(f"{ROUTER.number} batches, {ROUTER.n_replayed} of them replayed: {seen}")
