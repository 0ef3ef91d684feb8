"""Drives a running server through OpenAI's Agents SDK, over responses and over chats.

    python3 agents_client.py http://127.0.0.1:30000/v1

As for pydantic_ai_client.py, nothing here depends on what the model says: calls of tools are forced, and
answers have a form, in which they end.
"""

import asyncio
from typing import Literal

import agents
import openai
import pydantic
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from agents.exceptions import MaxTurnsExceeded

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect

# One loop for all runs, since the connections belong to it.
LOOP = asyncio.new_event_loop()
CLIENT = openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S)
FORMS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
agents.set_tracing_disabled(True)


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


@agents.function_tool
def weather(city: Literal["Seoul", "Busan"]) -> str:
    """The weather of a city."""
    assert city in ("Seoul", "Busan"), city
    return "21 degrees"


def agent(form, *, name=MODEL, tools=(), **settings):
    model = form(model=name, openai_client=CLIENT)
    settings = ModelSettings(temperature=0.0, max_tokens=300, extra_body=AT_ONCE, **settings)
    return Agent(
        "weather", instructions="짧게 답해.", model=model, tools=list(tools), model_settings=settings, output_type=Weather
    )


def run(one, **limits):
    return LOOP.run_until_complete(Runner.run(one, "서울 날씨 어때?", **limits))


def check_an_answer_in_a_form():
    for form in FORMS:
        result = run(agent(form))
        assert result.final_output.city in ("Seoul", "Busan"), result.final_output
        usage = result.context_wrapper.usage
        assert usage.requests == 1 and 0 < usage.output_tokens <= 300, usage


def check_a_forced_tool_is_called_and_answered():
    for form in FORMS:
        result = run(agent(form, tools=[weather], tool_choice="weather"))
        kinds = [item.type for item in result.new_items]
        assert "tool_call_item" in kinds and "tool_call_output_item" in kinds, kinds
        assert result.context_wrapper.usage.requests == 2, result.context_wrapper.usage


def check_turns_are_limited():
    for form in FORMS:
        one = agent(form, tools=[weather], tool_choice="weather")
        one.reset_tool_choice = False
        expect(MaxTurnsExceeded, lambda one=one: run(one, max_turns=2))


def check_streams():
    async def events(one):
        result = Runner.run_streamed(one, "서울 날씨 어때?")
        kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
        return kinds, result

    for form in FORMS:
        kinds, result = LOOP.run_until_complete(events(agent(form, tools=[weather], tool_choice="weather")))
        assert kinds.count("response.completed") == 2, kinds
        assert "response.function_call_arguments.delta" in kinds, kinds
        assert result.final_output.celsius in (-5, 0, 21), result.final_output


def check_an_unknown_model_is_a_typed_error():
    for form in FORMS:
        expect(openai.NotFoundError, lambda form=form: run(agent(form, name="nowhere")))


checks.run(
    [
        check_an_answer_in_a_form,
        check_a_forced_tool_is_called_and_answered,
        check_turns_are_limited,
        check_streams,
        check_an_unknown_model_is_a_typed_error,
    ]
)
