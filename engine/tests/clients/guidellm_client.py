"""Runs guidellm, a load generator, against a running server, and asserts what it records.

    python3 guidellm_client.py http://127.0.0.1:30000/v1 FOLDER_OF_THE_TOKENIZER

Nothing here depends on what the model says.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import checks
from checks import API_KEY, BASE_URL, MODEL

TOKENIZER = sys.argv[2] if len(sys.argv) > 2 else MODEL
N_PROMPT, N_OUTPUT = 64, 8
# Of one run.
LIMIT_S = 200


def options(**fields):
    return ",".join(f"{name}={value}" for name, value in fields.items())


def run(endpoint, profile, n_requests, **backend):
    """The one benchmark of a run."""
    backend = {
        "kind": "openai_http",
        "target": BASE_URL.removesuffix("/v1"),
        "model": MODEL,
        "api_key": API_KEY,
        "request_format": endpoint,
    } | backend
    program = pathlib.Path(sys.executable).with_name("guidellm")
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.json")
        command = [program, "run", "--disable-console"]
        command += ["--backend", options(**backend), "--profile", options(**profile)]
        command += ["--constraint", options(kind="max_requests", count=n_requests)]
        command += ["--tokenizer", options(kind="huggingface_auto", model=TOKENIZER)]
        lengths = options(kind="synthetic_text", prompt_tokens=N_PROMPT, output_tokens=N_OUTPUT)
        command += ["--data", lengths, "--data-loader", options(kind="pytorch", num_workers=0)]
        command += ["--output", options(kind="json", path=report)]
        ran = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert ran.returncode == 0, ran.stdout[-3000:]
        (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark


def completed(benchmark, n_requests):
    """The requests, all of which succeeded with as many tokens as were asked for."""
    totals = benchmark["metrics"]["request_totals"]
    wanted = {"successful": n_requests, "errored": 0, "incomplete": 0, "total": n_requests}
    assert totals == wanted, (totals, benchmark["requests"]["errored"][:1])
    requests = benchmark["requests"]["successful"]
    for request in requests:
        assert request["output_tokens"] == N_OUTPUT, request
        assert request["total_tokens"] == request["prompt_tokens"] + N_OUTPUT, request
        assert request["request_latency"] > 0 and request["output"], request
    return requests


def check_streamed_chats_one_by_one():
    requests = completed(run("/v1/chat/completions", {"kind": "synchronous"}, 4), 4)
    for request in requests:
        # With what the chat template adds.
        assert N_PROMPT < request["prompt_tokens"] < N_PROMPT + 20, request
        first_ms, rest_ms = request["time_to_first_token_ms"], request["inter_token_latency_ms"]
        assert first_ms > 0 and rest_ms > 0, request
        assert first_ms < 1000 * request["request_latency"], request
    assert len({request["response_id"] for request in requests}) == 4, requests


def check_streamed_completions_side_by_side():
    benchmark = run("/v1/completions", {"kind": "concurrent", "streams": 4}, 16)
    for request in completed(benchmark, 16):
        assert request["prompt_tokens"] == N_PROMPT, request
    assert benchmark["metrics"]["request_concurrency"]["successful"]["max"] > 1, "one after the other"


def check_whole_answers_at_a_rate():
    benchmark = run("/v1/chat/completions", {"kind": "constant", "rate": 20}, 10, stream="false")
    completed(benchmark, 10)


def check_refusals_are_recorded():
    benchmark = run(
        "/v1/chat/completions", {"kind": "synchronous"}, 2, extras='{"body": {"temperature": -1}}'
    )
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == totals["total"] == 2, totals
    for request in benchmark["requests"]["errored"]:
        # guidellm does not keep the message that came with it.
        assert "400 Bad Request" in request["info"]["error"], request["info"]


checks.run(
    [
        check_streamed_chats_one_by_one,
        check_streamed_completions_side_by_side,
        check_whole_answers_at_a_rate,
        check_refusals_are_recorded,
    ]
)
