"""Drives a running server through OpenAI's own Python client and asserts what it gets.

    pip install openai
    python3 openai_client.py http://127.0.0.1:30000/v1

Prints one PASS or FAIL line a check; the exit code is 1 if any failed. Nothing here depends on what
the model says, so any model will do.
"""

import concurrent.futures
import json
import urllib.error
import urllib.request

import checks
from checks import BASE_URL, MODEL, stop_in
from openai_shared import client, expect_error

CHAT = [{"role": "user", "content": "서울에 대해 한 문장으로 말해 줘. Then say it in English."}]
PROMPT = "Once upon a time, in a small village by the sea,"


def complete(**fields):
    fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "temperature": 0} | fields
    return client.completions.create(**fields)


def chat(**fields):
    fields = {"model": MODEL, "messages": CHAT, "max_tokens": 24, "temperature": 0} | fields
    return client.chat.completions.create(**fields)


def check_completion():
    answer = complete()
    choice = answer.choices[0]
    assert choice.text, "no text"
    assert choice.finish_reason in ("stop", "length"), choice.finish_reason
    assert 1 <= answer.usage.completion_tokens <= 24, answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert complete().choices[0].text == choice.text, "greedy decoding is not repeatable"


def check_streamed_chat():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    deltas = [c.choices[0] for c in chunks if c.choices]
    text = "".join(d.delta.content or "" for d in deltas)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    reasons = [d.finish_reason for d in deltas if d.finish_reason]
    assert reasons == [whole.choices[0].finish_reason], reasons
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens, chunks[-1]
    assert all(c.usage is None for c in chunks[:-1]), "usage before the last chunk"
    assert len({c.id for c in chunks}) == 1, "a stream has one id"


def check_streamed_completion():
    whole = complete().choices[0].text
    text = "".join(c.choices[0].text for c in complete(stream=True) if c.choices)
    assert text == whole, (text, whole)


def check_chat_logprobs():
    choice = chat(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert tokens, "no logprobs"
    for token in tokens:
        assert token.logprob <= 0, token
        ranked = [top.logprob for top in token.top_logprobs]
        assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True), token
        assert token.logprob == ranked[0], "the greedy token is the likeliest"
    # Exact bytes, so that characters spread over tokens come out whole. The end-of-sequence
    # token may be in the list; it has no text.
    shown = b"".join(bytes(token.bytes or []) for token in tokens)
    content = choice.message.content.encode().rstrip("\ufffd".encode())
    assert shown.startswith(content), (shown, content)


def check_completion_logprobs():
    logprobs = complete(logprobs=2).choices[0].logprobs
    n = len(logprobs.tokens)
    assert n == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def check_stop_string():
    text = complete().choices[0].text
    stop = stop_in(text)
    choice = complete(stop=["\x00never\x00", stop]).choices[0]
    assert choice.text == text[: text.index(stop)], (choice.text, stop, text)
    assert choice.finish_reason == "stop", choice.finish_reason
    streamed = "".join(c.choices[0].text for c in complete(stop=[stop], stream=True) if c.choices)
    assert streamed == choice.text, streamed


def check_seed():
    fields = {"temperature": 1.0, "seed": 7, "top_p": 0.95}
    alone = complete(**fields).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        others = [pool.submit(complete, temperature=1.0, seed=100 + i) for i in range(5)]
        beside = pool.submit(complete, **fields).result().choices[0].text
        texts = {other.result().choices[0].text for other in others}
    assert beside == alone, "the batch changed a seeded text"
    assert len(texts | {alone}) > 1, "every seed gives the same text"


def check_bad_requests():
    expect_error(400, lambda: complete(temperature=-1), param="temperature")
    expect_error(400, lambda: complete(top_p=2), param="top_p")
    expect_error(400, lambda: complete(max_tokens=-3), param="max_tokens")
    expect_error(400, lambda: chat(messages=[]), param="messages")
    expect_error(400, lambda: complete(stop=[""]), param="stop")
    expect_error(404, lambda: complete(model="no-such-model"), param="model")
    # The client cannot send broken JSON.
    headers = {"content-type": "application/json", "authorization": f"Bearer {client.api_key}"}
    request = urllib.request.Request(f"{BASE_URL}/completions", data=b"{not json", headers=headers)
    try:
        urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        assert error.code == 400 and json.load(error)["error"]["message"], error
    else:
        raise AssertionError("broken JSON was accepted")


checks.run([
    check_completion,
    check_streamed_completion,
    check_streamed_chat,
    check_chat_logprobs,
    check_completion_logprobs,
    check_stop_string,
    check_seed,
    check_bad_requests,
])
