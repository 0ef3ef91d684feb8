"""Runs lm-evaluation-harness against a running server, with the tasks of `lm_eval_tasks/`, and compares
what it records with the server's own scores.

    python3 lm_eval_client.py http://127.0.0.1:30000/v1 FOLDER_OF_THE_TOKENIZER

Nothing here depends on what the model says.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager

import checks
from checks import API_KEY, BASE_URL, MODEL, expect, fetch

TOKENIZER = sys.argv[2] if len(sys.argv) > 2 else MODEL
LOCAL = {"tokenizer": TOKENIZER, "tokenizer_backend": "huggingface"}
# Of a score, relative; batches differ in the order of sums.
TOLERANCE = 2e-3
MAX_LENGTH = 128
SCORED = ("engine_choice", "engine_rolling")
TASKS = (*SCORED, "engine_generate")
# What the task asks for.
OF_TEXTS = {"model": MODEL, "max_tokens": 12, "temperature": 0, "stop": "\n"}
# Of one run of the harness.
LIMIT_S = 300

os.environ["OPENAI_API_KEY"] = API_KEY


def arguments(path, more):
    of_all = {"model": MODEL, "base_url": f"{BASE_URL}/{path}", "max_retries": 1, "max_length": MAX_LENGTH}
    return ",".join(f"{name}={value}" for name, value in (of_all | more).items())


def run_program(*options):
    """As one does on a command line; metrics and samples by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", arguments("completions", LOCAL), "--include_path", "lm_eval_tasks"]
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [*command, "--tasks", *TASKS, "--log_samples", "--output_path", folder, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert ran.returncode == 0, ran.stdout[-4000:]
        assert "API request failed" not in ran.stdout, ran.stdout[-4000:]
        (results,) = pathlib.Path(folder).rglob("results_*.json")
        samples = {}
        for task in TASKS:
            (file,) = pathlib.Path(folder).rglob(f"samples_{task}_*.jsonl")
            samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
        return json.loads(results.read_text())["results"], in_order(samples)


def run(model, path, tasks, *, batch_size=1, chat=False, **more):
    """The same within this process, without the index of all the harness's own tasks."""
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments(path, more),
        tasks=list(tasks),
        task_manager=MANAGER,
        batch_size=batch_size,
        apply_chat_template=chat,
        log_samples=True,
        verbosity="ERROR",
    )
    return in_order(results["samples"])


def in_order(samples):
    assert all(samples.values()), samples
    return {task: sorted(lines, key=lambda line: line["doc_id"]) for task, lines in samples.items()}


def tokens_of(text):
    return fetch("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]


def log_probabilities(tokens):
    """The server's own, of every token but the first."""
    fields = {"model": MODEL, "prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = fetch("/v1/completions", fields)["choices"][0]
    first, *others = choice["logprobs"]["token_logprobs"]
    assert first is None and len(others) == len(tokens) - 1, choice
    return others


def scores_of(samples):
    """Log-probabilities by task, document and choice."""
    # A choice's has with it whether it is the likeliest text.
    score = {"engine_choice": lambda said: float(said[0][0]), "engine_rolling": lambda said: float(said[0])}
    return {task: [[score[task](said) for said in line["resps"]] for line in samples[task]] for task in SCORED}


def assert_same(one, other):
    flat = lambda scores: [value for task in SCORED for line in scores[task] for value in line]
    pairs = list(zip(flat(one), flat(other), strict=True))
    assert all(math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE * max(1, abs(a))) for a, b in pairs), pairs


MANAGER = TaskManager(include_path="lm_eval_tasks", include_defaults=False)
samples = None


def check_program():
    """Multiple choice, rolling scores and texts, with token ids as prompts and the cache's tokenizer."""
    global samples
    metrics, samples = run_program()
    assert set(metrics) == set(TASKS), metrics
    for name in ("acc,none", "acc_norm,none"):
        assert 0 <= metrics["engine_choice"][name] <= 1, metrics
    assert metrics["engine_rolling"]["bits_per_byte,none"] > 0, metrics
    assert 0 <= metrics["engine_generate"]["exact_match,none"] <= 1, metrics
    assert all(value < 0 for task in scores_of(samples).values() for line in task for value in line), samples


def check_choices_are_the_servers_own_scores():
    for line in samples["engine_choice"]:
        scores = [pair[0] for pair in line["resps"]]
        assert len(scores) == len(line["doc"]["choices"]), line
        for choice, (recorded, is_greedy) in zip(line["doc"]["choices"], scores, strict=True):
            context = tokens_of(f"질문: {line['doc']['question']}\n답:")
            whole = tokens_of(f"질문: {line['doc']['question']}\n답: {choice}")
            own = sum(log_probabilities(whole)[len(context) - 1 :])
            assert math.isclose(float(recorded), own, abs_tol=TOLERANCE * abs(own)), (line, choice, own)
            assert is_greedy in (True, False, "True", "False"), line


def check_rolling_scores_are_the_servers_own():
    n_windows = []
    for line in samples["engine_rolling"]:
        tokens = tokens_of(line["doc"]["text"])
        # The harness begins with the end-of-text token; then each window has one token of the last one.
        window, start, own = MAX_LENGTH - 2, 0, 0.0
        (before,) = tokens_of(fetch("/tokenizer_info")["eos_token"])
        windows = 0
        while start < len(tokens):
            end = min(start + window, len(tokens))
            # The last window is filled up with what came before.
            first = start if end - start == window or start == 0 else end - window
            context = tokens[first - 1] if first else before
            own += sum(log_probabilities([context, *tokens[first:end]])[start - first :])
            start, windows = end, windows + 1
        n_windows.append(windows)
        recorded = float(line["resps"][0][0])
        assert math.isclose(recorded, own, abs_tol=TOLERANCE * abs(own)), (line["doc"], recorded, own)
    assert max(n_windows) > 1, ("no text is longer than a window", n_windows)


def check_batches_and_concurrency_change_nothing():
    for more in ({"batch_size": 8}, {"num_concurrent": 4}):
        others = run("local-completions", "completions", SCORED, **LOCAL, **more)
        assert_same(scores_of(samples), scores_of(others))


def check_the_servers_tokenizer():
    """Found by the harness itself, since the server has vLLM's endpoints for it."""
    others = run("local-completions", "completions", SCORED)
    assert_same(scores_of(samples), scores_of(others))


def check_texts_are_the_servers_own():
    for line in samples["engine_generate"]:
        fields = OF_TEXTS | {"prompt": line["doc"]["question"]}
        assert line["resps"][0][0] == fetch("/v1/completions", fields)["choices"][0]["text"], line


def check_chats():
    lines = run("local-chat-completions", "chat/completions", ["engine_generate"], chat=True, num_concurrent=2)
    for line in lines["engine_generate"]:
        fields = OF_TEXTS | {"messages": [{"role": "user", "content": line["doc"]["question"]}]}
        answer = fetch("/v1/chat/completions", fields)
        assert line["resps"][0][0] == answer["choices"][0]["message"]["content"], (line, answer)


def check_refusal():
    """The harness ends with the server's message."""
    error = expect(AssertionError, lambda: run_program("--gen_kwargs", "temperature=-1"))
    assert "temperature is -1" in str(error), error


checks.run(
    [
        check_program,
        check_choices_are_the_servers_own_scores,
        check_rolling_scores_are_the_servers_own,
        check_batches_and_concurrency_change_nothing,
        check_the_servers_tokenizer,
        check_texts_are_the_servers_own,
        check_chats,
        check_refusal,
    ]
)
