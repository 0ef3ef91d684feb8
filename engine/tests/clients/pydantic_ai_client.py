"""Drives a running server through agents of Pydantic AI.

    python3 pydantic_ai_client.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing here
depends on what the model says: forms and calls of tools are forced.
"""

import asyncio
from typing import Literal

import openai
import pydantic
from pydantic_ai import Agent, ModelHTTPError, ModelRetry, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect, token_of

# One loop for all runs, since the connections belong to it.
LOOP = asyncio.new_event_loop()
asyncio.set_event_loop(LOOP)
PROVIDER = OpenAIProvider(
    openai_client=openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S)
)
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
SETTINGS = {"temperature": 0.0, "max_tokens": 300, "extra_body": AT_ONCE}
QUESTION = "서울 날씨 어때?"


class Weather(pydantic.BaseModel, extra="forbid"):
    """The weather of a city."""

    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


class Wishes(pydantic.BaseModel):
    """What may be left out."""

    city: str = "Seoul"


def agent(*, settings=None, model_name=MODEL, **fields):
    settings = SETTINGS | (settings or {})
    model = OpenAIChatModel(model_name, provider=PROVIDER)
    return Agent(model, model_settings=settings, **fields)


def parts_of(result, kind):
    return [part for message in result.all_messages() for part in message.parts if isinstance(part, kind)]


def check_text():
    result = agent(instructions="짧게 답해.", settings={"max_tokens": 24}).run_sync(QUESTION)
    assert result.output, result
    assert result.response.finish_reason in ("stop", "length"), result.response
    assert result.response.model_name == MODEL, result.response
    assert result.usage.requests == 1 and 1 <= result.usage.output_tokens <= 24, result.usage
    # The whole conversation goes on.
    again = agent(settings={"max_tokens": 24}).run_sync("그리고?", message_history=result.all_messages())
    assert again.usage.input_tokens > result.usage.input_tokens, (again.usage, result.usage)


def check_output_by_tool():
    result = agent(output_type=ToolOutput(Weather, name="tell")).run_sync(QUESTION)
    assert isinstance(result.output, Weather), result
    (call,) = parts_of(result, ToolCallPart)
    assert call.tool_name == "tell" and call.tool_call_id, call
    assert result.response.finish_reason in ("stop", "tool_call"), result.response


def check_native_and_prompted_output():
    for output in (NativeOutput(Weather), NativeOutput(Weather, strict=True)):
        result = agent(output_type=output).run_sync(QUESTION)
        assert isinstance(result.output, Weather), result
        assert result.response.finish_reason == "stop", result.response
    # With one form of several, too.
    result = agent(output_type=NativeOutput([Weather, bool])).run_sync(QUESTION)
    assert isinstance(result.output, (Weather, bool)), result
    # Here only the prompt asks for more than any object, so one that is closed at once has to do.
    closed = {"logit_bias": {token_of("{}"): 100, token_of("}"): 100}}
    result = agent(output_type=PromptedOutput(Wishes), settings=closed, retries=0).run_sync(QUESTION)
    assert result.output == Wishes(), result


def check_tool_call_and_answer():
    calls = []

    def settings(context):
        # Forced in the first step, so that an answer can follow.
        choice = "required" if context.run_step == 1 else "none"
        return SETTINGS | {"max_tokens": 60, "tool_choice": choice}

    weather = Agent(OpenAIChatModel(MODEL, provider=PROVIDER), model_settings=settings)

    @weather.tool_plain
    def get_weather(city: Literal["Seoul", "Busan"], days: Literal[1, 2] = 1) -> str:
        """Says the weather of a city."""
        calls.append((city, days))
        return f"clear in {city}"

    result = weather.run_sync(QUESTION)
    assert calls, result
    asked, told = parts_of(result, ToolCallPart), parts_of(result, ToolReturnPart)
    assert [part.tool_call_id for part in asked] == [part.tool_call_id for part in told], result
    assert len({part.tool_call_id for part in asked}) == len(asked) == len(calls), result
    assert all(city in ("Seoul", "Busan") and days in (1, 2) for city, days in calls), calls
    assert result.usage.requests == 2 and result.output, result


def check_one_of_several_tools():
    """An output tool by name, beside tools that may not be called."""
    # The framework's own way to say so is `tool_choice: none`, which leaves the output tools.
    several = agent(output_type=[ToolOutput(Weather, name="tell"), ToolOutput(bool, name="refuse")])

    @several.tool_plain
    def get_weather(city: str) -> str:
        """Says the weather of a city."""
        raise AssertionError("called though only the output's tools were allowed")

    result = several.run_sync(QUESTION, model_settings={"tool_choice": "none"})
    assert isinstance(result.output, (Weather, bool)), result
    assert parts_of(result, ToolCallPart)[0].tool_name in ("tell", "refuse"), result


def check_retry():
    checked = agent(output_type=ToolOutput(Weather), retries=2)
    answers = []

    @checked.output_validator
    def refuse_once(answer: Weather) -> Weather:
        answers.append(answer)
        if len(answers) == 1:
            raise ModelRetry("say it again")
        return answer

    result = checked.run_sync(QUESTION)
    assert isinstance(result.output, Weather) and len(answers) == 2, (result, answers)
    assert result.usage.requests == 2, result.usage


def check_streams():
    async def text():
        whole = await agent(settings={"max_tokens": 24}).run(QUESTION)
        async with agent(settings={"max_tokens": 24}).run_stream(QUESTION) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
            usage = stream.usage
        assert len(pieces) > 3 and "".join(pieces) == whole.output, (pieces, whole)
        assert usage.output_tokens == whole.usage.output_tokens, (usage, whole.usage)
        assert usage.input_tokens == whole.usage.input_tokens, (usage, whole.usage)

    async def form():
        for output in (ToolOutput(Weather), NativeOutput(Weather)):
            async with agent(output_type=output).run_stream(QUESTION) as stream:
                answer = await stream.get_output()
            assert isinstance(answer, Weather), answer

    async def several():
        answers = await asyncio.gather(*(agent(output_type=NativeOutput(Weather)).run(QUESTION) for _ in range(4)))
        assert len({answer.output.model_dump_json() for answer in answers}) == 1, answers

    LOOP.run_until_complete(text())
    LOOP.run_until_complete(form())
    LOOP.run_until_complete(several())


def check_thoughts():
    thinks = {"logit_bias": {token_of("<think>"): 50, token_of("ha"): 90}, "max_tokens": 5}
    thinking = agent(settings=thinks | {"extra_body": {"guided_choice": ["well."]}})

    async def thought():
        async with thinking.iter(QUESTION) as run:
            async for node in run:
                if Agent.is_call_tools_node(node):
                    return node.model_response

    response = LOOP.run_until_complete(thought())
    (part,) = [part for part in response.parts if isinstance(part, ThinkingPart)]
    assert part.content == "hahahaha", response
    assert response.finish_reason == "length", response


def check_refusals():
    error = expect(ModelHTTPError, lambda: agent(settings={"temperature": -1.0}).run_sync(QUESTION))
    assert error.status_code == 400 and error.body["param"] == "temperature", error
    assert "must be from 0" in error.body["message"], error
    error = expect(ModelHTTPError, lambda: agent(model_name="no-such-model").run_sync(QUESTION))
    assert error.status_code == 404 and MODEL in error.body["message"], error
    error = expect(ModelHTTPError, lambda: agent().run_sync("word " * 50_000))
    assert error.status_code == 400 and error.body["code"] == "context_length_exceeded", error


def check_responses():
    model = OpenAIResponsesModel(MODEL, provider=PROVIDER)
    result = Agent(model, model_settings=SETTINGS | {"max_tokens": 24}).run_sync(QUESTION)
    assert result.output and 1 <= result.usage.output_tokens <= 24, result
    told = Agent(model, model_settings=SETTINGS, output_type=ToolOutput(Weather, name="tell"))
    assert isinstance(told.run_sync(QUESTION).output, Weather)


checks.run(
    [
        check_text,
        check_output_by_tool,
        check_native_and_prompted_output,
        check_tool_call_and_answer,
        check_one_of_several_tools,
        check_retry,
        check_streams,
        check_thoughts,
        check_refusals,
        check_responses,
    ]
)
