"""Drives a running server through instructor, which asks again until an answer fits a pydantic model.

    python3 instructor_client.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing here
depends on what the model says: forms and calls of tools are forced.
"""

import asyncio
import json
from typing import Literal

import instructor
import openai
import pydantic
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect, token_of

SERVER = {"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0, "timeout": TIMEOUT_S}
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
USER = [{"role": "user", "content": "서울 날씨 어때?"}]
# An object that is closed at once, so that one of any form is short, whatever the model would say.
EMPTY = {"logit_bias": {token_of("{}"): 100, token_of("}"): 100}}


class Weather(pydantic.BaseModel, extra="forbid"):
    """The weather of a city."""

    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


class Wishes(pydantic.BaseModel):
    """What may be left out."""

    city: str = "Seoul"
    days: int = 1


def client(mode, **hooks):
    made = instructor.from_openai(openai.OpenAI(**SERVER), mode=mode)
    for name, hook in hooks.items():
        made.on(name.replace("_", ":"), hook)
    return made


def fields(**more):
    return {
        "model": MODEL,
        "messages": USER,
        "max_tokens": 300,
        "temperature": 0,
        "max_retries": 0,
        "extra_body": AT_ONCE,
    } | more


def assert_sums(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def check_tools():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT):
        answer, raw = client(mode).create_with_completion(response_model=Weather, **fields())
        assert isinstance(answer, Weather), answer
        (call,) = raw.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == answer.model_dump(), call
        assert_sums(raw.usage)


def check_json_schema():
    answer, raw = client(instructor.Mode.JSON_SCHEMA).create_with_completion(response_model=Weather, **fields())
    assert isinstance(answer, Weather), answer
    assert raw.choices[0].finish_reason == "stop", raw
    assert json.loads(raw.choices[0].message.content) == answer.model_dump(), raw
    assert_sums(raw.usage)


def check_json():
    json_mode = client(instructor.Mode.JSON)
    answer, raw = json_mode.create_with_completion(response_model=Wishes, **fields(**EMPTY))
    assert answer.model_dump() == Wishes().model_dump() and json.loads(raw.choices[0].message.content) == {}, raw
    assert raw.choices[0].finish_reason == "stop", raw


def check_partial_streams():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        parts = list(client(mode).create_partial(response_model=Weather, **fields()))
        whole = client(mode).create(response_model=Weather, **fields())
        assert len(parts) > 1, parts
        assert parts[-1].model_dump() == whole.model_dump(), (parts, whole)


def check_retries_that_succeed():
    """What its validator refuses is asked for again, with the answer and the error in the messages."""
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        refused, asked = [], []

        class Checked(Weather):
            @pydantic.field_validator("city")
            @classmethod
            def refuse_once(cls, city):
                if not refused:
                    refused.append(city)
                    raise ValueError("say it again")
                return city

        again = client(mode, completion_kwargs=lambda *_, **kwargs: asked.append(len(kwargs["messages"])))
        answer, raw = again.create_with_completion(response_model=Checked, **fields(max_retries=3))
        assert isinstance(answer, Checked) and len(refused) == 1, (answer, refused)
        assert len(asked) == 2 and asked[1] > asked[0], asked
        assert_sums(raw.usage)


def check_retries_that_run_out():
    """Any object is no weather, so JSON mode fails as often as it may."""
    totals = []
    # Now, since instructor adds up the usage of all attempts in the last one's.
    note = lambda answer: totals.append(answer.usage.total_tokens)
    failing = client(instructor.Mode.JSON, completion_response=note)
    ask = lambda: failing.create(response_model=Weather, **fields(max_retries=2, **EMPTY))
    error = expect(InstructorRetryException, ask)
    # The first time and two more.
    assert error.n_attempts == len(totals) == 3, (error, totals)
    assert error.total_usage.total_tokens == sum(totals), (error, totals)
    # The messages grow by the answer and what is wrong with it.
    assert totals == sorted(set(totals)), totals


def check_cut_off():
    expect(
        (IncompleteOutputException, InstructorRetryException),
        lambda: client(instructor.Mode.TOOLS).create(response_model=Weather, **fields(max_tokens=3)),
    )


def check_async():
    several = instructor.from_openai(openai.AsyncOpenAI(**SERVER), mode=instructor.Mode.TOOLS)

    async def ask():
        asked = (several.create(response_model=Weather, **fields()) for _ in range(4))
        return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert all(isinstance(answer, Weather) for answer in answers), answers
    assert len({answer.model_dump_json() for answer in answers}) == 1, answers


def check_refusals():
    ask = lambda **more: client(instructor.Mode.TOOLS).create(response_model=Weather, **fields(**more))
    error = expect(InstructorRetryException, lambda: ask(temperature=-1))
    assert "temperature is -1" in str(error), error
    error = expect(InstructorRetryException, lambda: ask(model="no-such-model"))
    assert "no-such-model" in str(error) and MODEL in str(error), error


checks.run(
    [
        check_tools,
        check_json_schema,
        check_json,
        check_partial_streams,
        check_retries_that_succeed,
        check_retries_that_run_out,
        check_cut_off,
        check_async,
        check_refusals,
    ]
)
