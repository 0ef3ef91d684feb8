"""Drives a running server's `/v1/responses` through OpenAI's own Python client.

    python3 openai_responses.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing
here depends on what the model says: forms, calls and thoughts are forced.
"""

import json
from typing import Literal

import openai
import pydantic

import checks
from checks import MODEL, expect, token_of
from openai_shared import client, expect_error

AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


TOOLS = [
    {"type": "function", "name": "get_weather", "strict": True, "parameters": Weather.model_json_schema()},
]


def fields(**more):
    of_all = {"model": MODEL, "input": "서울 날씨 어때?", "max_output_tokens": 300, "temperature": 0}
    return of_all | {"extra_body": AT_ONCE} | more


def create(**more):
    return client.responses.create(**fields(**more))


def check_response():
    response = create(max_output_tokens=24, instructions="짧게 답해.", metadata={"a": "b"})
    assert response.output_text and response.model == MODEL, response
    assert response.status in ("completed", "incomplete"), response
    assert response.metadata == {"a": "b"} and response.instructions == "짧게 답해.", response
    usage = response.usage
    assert 1 <= usage.output_tokens <= 24, usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens, usage
    again = create(max_output_tokens=24, instructions="짧게 답해.")
    assert again.output_text == response.output_text, "greedy decoding is not repeatable"
    assert again.usage.input_tokens_details.cached_tokens > 0, again.usage


def check_stream():
    whole = create(max_output_tokens=24)
    with client.responses.stream(**fields(max_output_tokens=24)) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == f"response.{whole.status}", last
    assert text == whole.output_text == last.response.output_text, (text, whole)
    assert [event.sequence_number for event in events] == list(range(len(events))), events
    assert events[0].type == "response.created" and events[1].type == "response.in_progress", events


def check_stored_conversation():
    first = create(max_output_tokens=8)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    (item,) = client.responses.input_items.list(first.id).data
    assert item.role == "user" and item.content[0].text == "서울 날씨 어때?", item
    second = create(input="그리고?", previous_response_id=first.id, max_output_tokens=8)
    turns = [{"role": "user", "content": "서울 날씨 어때?"}, *first.output, {"role": "user", "content": "그리고?"}]
    sent = create(input=turns, max_output_tokens=8, store=False)
    assert sent.usage.input_tokens == second.usage.input_tokens, (sent.usage, second.usage)
    client.responses.delete(first.id)
    expect(openai.NotFoundError, lambda: client.responses.retrieve(first.id))
    expect_error(404, lambda: create(previous_response_id=sent.id), param="previous_response_id")


def check_forced_tool_and_its_result():
    asked = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    response = create(**asked)
    (call,) = response.output
    assert call.type == "function_call" and Weather.model_validate_json(call.arguments), response
    with client.responses.stream(**fields(**asked)) as stream:
        events = list(stream)
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments], done
    result = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"sky": "clear"})}
    answer = create(input=[result], previous_response_id=response.id, tools=TOOLS, max_output_tokens=8)
    assert answer.usage.input_tokens > response.usage.input_tokens, answer


def check_parsed_schema():
    response = client.responses.parse(**fields(text_format=Weather))
    assert isinstance(response.output_parsed, Weather), response
    with client.responses.stream(**fields(text_format=Weather)) as stream:
        stream.until_done()
        streamed = stream.get_final_response()
    assert streamed.output_parsed == response.output_parsed, streamed


def check_thoughts():
    # The form leaves no first token but the thought's and its own.
    form = {"format": {"type": "json_schema", "name": "w", "schema": Weather.model_json_schema()}}
    asked = {"text": form, "max_output_tokens": 5}
    asked["extra_body"] = {"logit_bias": {token_of("<think>"): 50, token_of("ha"): 90}}
    response = create(**asked)
    (item,) = response.output
    assert item.type == "reasoning" and item.content[0].text == "hahahaha", response
    assert response.usage.output_tokens_details.reasoning_tokens == 4, response.usage
    with client.responses.stream(**fields(**asked)) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "hahahaha", deltas


def check_logprobs():
    response = create(max_output_tokens=6, include=["message.output_text.logprobs"], top_logprobs=2)
    (part,) = response.output[0].content
    assert part.logprobs and all(len(token.top_logprobs) == 2 for token in part.logprobs), part
    assert all(token.logprob == token.top_logprobs[0].logprob for token in part.logprobs), part
    shown = b"".join(bytes(token.bytes) for token in part.logprobs)
    assert shown.startswith(part.text.encode().rstrip("\ufffd".encode())), part


def check_a_stream_in_the_background_is_read_on():
    with create(max_output_tokens=24, background=True, stream=True) as stream:
        begin = [next(stream) for _ in range(5)]
    response_id, last = begin[0].response.id, begin[-1].sequence_number
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=last))
    numbers = [event.sequence_number for event in begin + rest]
    assert numbers == list(range(len(numbers))), numbers
    ended = rest[-1].response
    deltas = (event.delta for event in begin + rest if event.type == "response.output_text.delta")
    assert ended.background and "".join(deltas) == ended.output_text, ended
    assert client.responses.retrieve(response_id) == ended


def check_refusals():
    expect_error(400, lambda: create(temperature=-1), param="temperature")
    expect_error(400, lambda: create(tools=[{"type": "web_search"}]))
    expect_error(400, lambda: create(background=True), param="background")
    expect_error(400, lambda: create(input=[]), param="input")
    expect_error(404, lambda: create(model="no-such-model"), param="model")


checks.run([
    check_response,
    check_stream,
    check_stored_conversation,
    check_forced_tool_and_its_result,
    check_parsed_schema,
    check_thoughts,
    check_logprobs,
    check_a_stream_in_the_background_is_read_on,
    check_refusals,
])
