"""Drives a running server through Anthropic's own Python client and asserts what it gets.

    python3 anthropic_client.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing
here depends on what the model says: forms, calls and thoughts are forced.
"""

import anthropic

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect, stop_in, token_of

# Its paths begin with /v1, and its key is sent as x-api-key.
client = anthropic.Anthropic(
    base_url=BASE_URL.removesuffix("/v1"), api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S
)
USER = [{"role": "user", "content": "서울 날씨 어때?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Seoul", "Busan"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "get_weather", "description": "Says the weather.", "input_schema": CITY},
    {"name": "get_time", "input_schema": {"type": "object", "additionalProperties": False}},
]


def fields(extra_body=None, **more):
    # The client has no argument for the temperature.
    extra_body = {"temperature": 0} | (extra_body or {})
    return {"model": MODEL, "messages": USER, "max_tokens": 300, "extra_body": extra_body} | more


def create(**more):
    return client.messages.create(**fields(**more))


def check_message():
    message = create(max_tokens=24, system="짧게 답해.", metadata={"user_id": "u"})
    (block,) = message.content
    assert block.type == "text" and block.text, message
    assert message.stop_reason in ("end_turn", "max_tokens"), message
    assert message.role == "assistant" and message.model == MODEL, message
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens > 0, usage
    assert 1 <= usage.output_tokens <= 24, usage
    again = create(max_tokens=24, system="짧게 답해.")
    assert again.content[0].text == block.text, "greedy decoding is not repeatable"
    assert again.usage.cache_read_input_tokens > 0, again.usage


def check_stream():
    whole = create(max_tokens=24)
    with client.messages.stream(**fields(max_tokens=24)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text, (text, whole, final)
    assert final.stop_reason == whole.stop_reason, final
    assert final.usage.output_tokens == whole.usage.output_tokens, final
    events = [event.type for event in create(max_tokens=4, stream=True)]
    # The client hides pings.
    assert events[0] == "message_start" and events[-1] == "message_stop", events


def check_counted_tokens():
    asked = {"system": "Be kind.", "tools": TOOLS}
    counted = client.messages.count_tokens(model=MODEL, messages=USER, **asked)
    usage = create(max_tokens=1, **asked).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens, (counted, usage)


def check_stop_sequence():
    text = create(max_tokens=24).content[0].text
    stop = stop_in(text)
    message = create(max_tokens=24, stop_sequences=["\x00never\x00", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop), message
    assert "".join(block.text for block in message.content) == text[: text.index(stop)], message


def check_forced_tool_and_its_result():
    for choice in (
        {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        {"type": "any", "disable_parallel_tool_use": True},
    ):
        asked = {"tools": TOOLS, "tool_choice": choice}
        message = create(**asked)
        (call,) = message.content
        assert message.stop_reason == "tool_use" and call.type == "tool_use", message
        assert call.name == "get_time" or call.input["city"] in ("Seoul", "Busan"), call
        with client.messages.stream(**fields(**asked)) as stream:
            streamed = stream.get_final_message()
        assert (streamed.content[0].name, streamed.content[0].input) == (call.name, call.input), streamed
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "clear"}
        # Blocks go back as the client has them.
        turns = [
            *USER,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        answer = create(messages=turns, tools=TOOLS, max_tokens=8)
        assert answer.content and answer.usage.output_tokens >= 1, answer


def check_thoughts():
    # The form leaves no first token but the thought's and its own.
    forced = {
        "logit_bias": {token_of("<think>"): 50, token_of("ha"): 90},
        "output_config": {"format": {"type": "json_schema", "schema": CITY}},
    }
    asked = fields(thinking={"type": "adaptive"}, max_tokens=5, extra_body=forced)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    (block,) = message.content
    assert block.type == "thinking" and block.thinking == "hahahaha", message
    assert len(block.signature) == 64 and message.stop_reason == "max_tokens", message
    assert "signature" in kinds and "thinking" in kinds, kinds
    turns = [*USER, {"role": "assistant", "content": message.content}, *USER]
    assert create(messages=turns, max_tokens=1).usage.output_tokens == 1


def check_errors():
    error = expect(anthropic.BadRequestError, lambda: create(extra_body={"temperature": -1}))
    assert error.body["error"]["type"] == "invalid_request_error" and "-1" in error.message, error
    image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    turns = [{"role": "user", "content": [image]}]
    error = expect(anthropic.BadRequestError, lambda: create(messages=turns))
    assert "messages[0].content[0]" in error.message and "image" in error.message, error
    error = expect(anthropic.NotFoundError, lambda: create(model="no-such-model"))
    assert error.body["error"]["type"] == "not_found_error" and MODEL in error.message, error
    long = [{"role": "user", "content": "word " * 50_000}]
    error = expect(anthropic.BadRequestError, lambda: create(messages=long))
    assert "tokens" in error.message, error


checks.run([
    check_message,
    check_stream,
    check_counted_tokens,
    check_stop_sequence,
    check_forced_tool_and_its_result,
    check_thoughts,
    check_errors,
])
