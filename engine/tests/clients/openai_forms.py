"""Drives a running server through OpenAI's own Python client: output of a form, calls of tools,
thoughts.

    python3 openai_forms.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing
here depends on what the model says: forms are forced, so a model with random weights will do.
"""

import json
from typing import Literal

import pydantic

import checks
from checks import MODEL, token_of
from openai_shared import client, expect_error

USER = [{"role": "user", "content": "서울 날씨 어때?"}]
# Without thoughts, which a model with random weights would not come out of.
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Seoul", "Busan"]
    sky: Literal["clear", "cloudy"]
    celsius: Literal[-5, 0, 21]


TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": Weather.model_json_schema()}},
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    },
]


def chat(extra_body=AT_ONCE, **fields):
    fields = {"model": MODEL, "messages": USER, "max_tokens": 600, "temperature": 0} | fields
    return client.chat.completions.create(extra_body=extra_body, **fields)


def check_parsed_schema():
    answer = client.chat.completions.parse(
        model=MODEL, messages=USER, max_tokens=600, response_format=Weather, extra_body=AT_ONCE
    )
    assert answer.choices[0].finish_reason == "stop", answer
    assert isinstance(answer.choices[0].message.parsed, Weather), answer


def check_streamed_schema():
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": Weather.model_json_schema()}}
    whole = chat(response_format=form).choices[0].message.content
    chunks = chat(response_format=form, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole, (text, whole)
    Weather.model_validate_json(text)


def check_regex_choice_grammar():
    for form, fits in [
        ({"guided_regex": "[0-9]{4}-[0-9]{2}"}, lambda text: len(text) == 7 and text[4] == "-"),
        ({"guided_choice": ["예", "아니요"]}, lambda text: text in ("예", "아니요")),
        ({"guided_grammar": 'start: "a" "b"~2'}, lambda text: text == "abb"),
        ({"structured_outputs": {"regex": "x{3}"}}, lambda text: text == "xxx"),
    ]:
        for temperature in (0, 1):
            answer = chat(form | AT_ONCE, temperature=temperature, n=2, seed=3)
            for choice in answer.choices:
                assert fits(choice.message.content), (form, choice)
        answer = client.completions.create(model=MODEL, prompt="x", max_tokens=60, extra_body=form)
        assert fits(answer.choices[0].text), (form, answer)


def check_required_tool():
    choice = chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert call.id and call.type == "function", call
    assert call.function.name in ("get_weather", "get_time"), call
    json.loads(call.function.arguments)


def check_named_tool_streamed():
    named = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(
        model=MODEL, messages=USER, max_tokens=600, tools=TOOLS, tool_choice=named, extra_body=AT_ONCE
    ) as stream:
        pieces = [e.arguments_delta for e in stream if e.type == "tool_calls.function.arguments.delta"]
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather", call
    assert "".join(pieces) == call.function.arguments and len(pieces) > 1, (pieces, call)
    Weather.model_validate_json(call.function.arguments)


def check_results_of_tools():
    call = {"id": "call_1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    messages = USER + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    answer = chat(messages=messages, tools=TOOLS, max_tokens=4)
    assert answer.usage.completion_tokens <= 4, answer.usage


def check_thoughts():
    # Before the answer only a thought may begin, and in one everything may come.
    form = {"guided_choice": ["well."]}
    thinks = {token_of("<think>"): 50, token_of("ha"): 90}
    fields = {"logit_bias": thinks, "max_tokens": 5}
    message = chat(form, **fields).choices[0].message
    assert (message.reasoning_content, message.content) == ("hahahaha", ""), message
    thought = ""
    for chunk in chat(form, stream=True, **fields):
        delta = chunk.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        assert not delta.content, delta
    assert thought == "hahahaha", thought
    ends = {token_of("<think>"): 50, token_of("</think>"): 100}
    message = chat(form, logit_bias=ends).choices[0].message
    assert (message.reasoning_content, message.content) == (None, "well."), message
    whole = chat(form | {"separate_reasoning": False}, logit_bias=ends).choices[0].message.content
    assert whole.startswith("<think></think>") and whole.endswith("well."), whole


def check_cached_tokens():
    messages = [{"role": "user", "content": "바다와 하늘 " * 30}]
    first = chat(messages=messages, max_tokens=1).usage
    second = chat(messages=messages, max_tokens=1).usage
    assert second.prompt_tokens == first.prompt_tokens, (first, second)
    cached = second.prompt_tokens_details.cached_tokens
    assert 0 < cached < second.prompt_tokens, second


def check_refusals():
    expect_error(400, lambda: chat({"guided_regex": "("}), param="guided_regex")
    expect_error(400, lambda: chat({"guided_json": {"type": "strin"}}), param="guided_json")
    too_large = {"guided_json": {"description": "x" * 100_000}}
    assert "limit" in expect_error(400, lambda: chat(too_large), param="guided_json")
    expect_error(400, lambda: chat(tool_choice="required"), param="tool_choice")
    expect_error(400, lambda: client.embeddings.create(model=MODEL, input="x"))


checks.run(
    [
        check_parsed_schema,
        check_streamed_schema,
        check_regex_choice_grammar,
        check_required_tool,
        check_named_tool_streamed,
        check_results_of_tools,
        check_thoughts,
        check_cached_tokens,
        check_refusals,
    ]
)
