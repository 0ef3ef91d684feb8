"""Drives a running server through LiteLLM's functions, as `hosted_vllm/` and as `openai/`.

    python3 litellm_client.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing here
depends on what the model says: forms and calls of tools are forced.
"""

import asyncio
import json
from typing import Literal

import litellm
import pydantic

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect, token_of

litellm.telemetry = False
litellm.suppress_debug_info = True

PREFIXES = ("hosted_vllm", "openai")
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
USER = [{"role": "user", "content": "서울 날씨 어때?"}]
# Ends an object as soon as it may end: LiteLLM takes `additionalProperties` out of tools for vLLM, so that a
# model with random weights would write properties without end.
SHORT = {"logit_bias": {token_of('"}'): 100, token_of("}"): 100}}


class Weather(pydantic.BaseModel, extra="forbid"):
    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Seoul", "Busan"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def server(prefix):
    return {
        "model": f"{prefix}/{MODEL}",
        "api_base": BASE_URL,
        "api_key": API_KEY,
        "timeout": TIMEOUT_S,
        "num_retries": 0,
        "max_retries": 0,
    }


def fields(prefix, **more):
    of_chat = {"messages": USER, "max_tokens": 24, "temperature": 0, "extra_body": AT_ONCE}
    return server(prefix) | of_chat | more


def chat(prefix, **more):
    return litellm.completion(**fields(prefix, **more))


def assert_sums(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def check_completion():
    texts = set()
    for prefix in PREFIXES:
        answer = chat(prefix)
        choice = answer.choices[0]
        assert choice.message.content and choice.finish_reason in ("stop", "length"), answer
        assert answer.model.endswith(MODEL), answer
        assert_sums(answer.usage)
        assert answer.usage.completion_tokens <= 24, answer
        texts.add(choice.message.content)
    assert len(texts) == 1, ("the prefix changed a text", texts)


def check_streaming():
    for prefix in PREFIXES:
        whole = chat(prefix)
        chunks = list(chat(prefix, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert len(chunks) > 3 and text == whole.choices[0].message.content, (text, whole)
        built = litellm.stream_chunk_builder(chunks, messages=USER)
        assert built.choices[0].message.content == text, built
        assert built.choices[0].finish_reason == whole.choices[0].finish_reason, (built, whole)
        counts = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        assert counts(built.usage) == counts(whole.usage), (built, whole)


def check_async():
    async def ask(prefix):
        whole = await litellm.acompletion(**fields(prefix))
        stream = await litellm.acompletion(**fields(prefix, stream=True))
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content, (text, whole)
        many = await asyncio.gather(*(litellm.acompletion(**fields(prefix)) for _ in range(4)))
        assert {answer.choices[0].message.content for answer in many} == {text}, many

    async def ask_both():
        for prefix in PREFIXES:
            await ask(prefix)

    asyncio.run(ask_both())


def check_tools():
    for prefix in PREFIXES:
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice in (named, "required"):
            more = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 300}
            answer = chat(prefix, **more, **SHORT)
            assert answer.choices[0].finish_reason == "tool_calls", answer
            (call,) = answer.choices[0].message.tool_calls
            assert call.id and call.function.name == "get_weather", call
            assert json.loads(call.function.arguments)["city"] in ("Seoul", "Busan"), call
            built = litellm.stream_chunk_builder(list(chat(prefix, stream=True, **more, **SHORT)))
            (streamed,) = built.choices[0].message.tool_calls
            assert streamed.function.arguments == call.function.arguments, (streamed, call)
        result = {"role": "tool", "tool_call_id": call.id, "content": "clear"}
        messages = [*USER, answer.choices[0].message.model_dump(), result]
        answer = chat(prefix, messages=messages, tools=[TOOL], max_tokens=4)
        assert 1 <= answer.usage.completion_tokens <= 4, answer


def check_structured_output():
    for prefix in PREFIXES:
        answer = chat(prefix, response_format=Weather, max_tokens=300)
        Weather.model_validate_json(answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop", answer
        form = {"type": "json_schema", "json_schema": {"name": "w", "schema": Weather.model_json_schema()}}
        chunks = chat(prefix, response_format=form, max_tokens=300, stream=True)
        Weather.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def check_logprobs():
    for prefix in PREFIXES:
        answer = chat(prefix, logprobs=True, top_logprobs=2)
        tokens = answer.choices[0].logprobs.content
        assert tokens, answer
        for token in tokens:
            assert token.logprob <= 0 and len(token.top_logprobs) == 2, token


def check_thoughts():
    thinks = {"logit_bias": {token_of("<think>"): 50, token_of("ha"): 90}, "max_tokens": 5}
    form = {"extra_body": {"guided_choice": ["well."]}}
    for prefix in PREFIXES:
        message = chat(prefix, **thinks, **form).choices[0].message
        assert message.reasoning_content == "hahahaha" and not message.content, message
        built = litellm.stream_chunk_builder(list(chat(prefix, stream=True, **thinks, **form)))
        assert built.choices[0].message.reasoning_content == "hahahaha", built


def check_text_completion():
    for prefix in ("hosted_vllm", "text-completion-openai"):
        more = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        answer = litellm.text_completion(**server(prefix), **more)
        text = answer.choices[0].text
        assert text and answer.choices[0].finish_reason in ("stop", "length"), answer
        assert_sums(answer.usage)
        chunks = litellm.text_completion(**server(prefix), **more, stream=True)
        assert "".join(chunk.choices[0].text or "" for chunk in chunks) == text, answer


def check_several_answers():
    for prefix in PREFIXES:
        answer = chat(prefix, n=3, temperature=1.0, seed=5)
        assert [choice.index for choice in answer.choices] == [0, 1, 2], answer
        assert len({choice.message.content for choice in answer.choices}) > 1, answer
        assert_sums(answer.usage)


def check_messages_of_anthropic():
    """Which LiteLLM turns into a chat or a response, and the answer back."""
    more = {"messages": USER, "max_tokens": 24, "temperature": 0}
    # "openai" turns it into a response instead, whose limit it raises to 16 at least.
    for prefix in PREFIXES:
        answer = asyncio.run(litellm.anthropic_messages(**server(prefix), **more))
        assert answer["type"] == "message" and answer["role"] == "assistant", answer
        assert answer["stop_reason"] in ("end_turn", "max_tokens"), answer
        assert 1 <= answer["usage"]["output_tokens"] <= 24 and answer["usage"]["input_tokens"] > 0, answer


def check_refusals():
    for prefix in PREFIXES:
        error = expect(litellm.BadRequestError, lambda: chat(prefix, temperature=-1))
        assert error.status_code == 400 and "temperature is -1" in error.message, error
        unknown = {"model": f"{prefix}/no-such-model"}
        error = expect(litellm.NotFoundError, lambda: chat(prefix, **unknown))
        assert error.status_code == 404 and "no-such-model" in error.message and MODEL in error.message, error
        long = [{"role": "user", "content": "word " * 50_000}]
        error = expect(litellm.ContextWindowExceededError, lambda: chat(prefix, messages=long))
        assert "tokens" in error.message, error


def check_responses():
    for prefix in PREFIXES:
        answer = litellm.responses(**server(prefix), input="x", max_output_tokens=24)
        assert answer.output and 1 <= answer.usage.output_tokens <= 24, answer


def check_embeddings_are_refused():
    error = expect(litellm.BadRequestError, lambda: litellm.embedding(**server("openai"), input=["x"]))
    assert "/v1/embeddings is not implemented" in str(error), error


checks.run(
    [
        check_completion,
        check_streaming,
        check_async,
        check_tools,
        check_structured_output,
        check_logprobs,
        check_thoughts,
        check_text_completion,
        check_several_answers,
        check_messages_of_anthropic,
        check_refusals,
        check_responses,
        check_embeddings_are_refused,
    ]
)
