"""Drives a running server through LangChain's client for OpenAI's API (langchain-openai).

    python3 langchain_client.py http://127.0.0.1:30000/v1

The server needs `--reasoning-parser qwen3`, and a model whose chat template is Qwen3's. Nothing here
depends on what the model says: forms and calls of tools are forced.
"""

import asyncio
import json
import warnings
from typing import Literal

import openai
import pydantic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect, stop_in, token_of

SERVER = {"base_url": BASE_URL, "api_key": API_KEY, "model": MODEL, "max_retries": 0, "timeout": TIMEOUT_S}
# Of an answer that LangChain has parsed and shows as it came.
warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
# Ends an object as soon as it may end: a model with random weights would add fields without end where a schema
# lets it, and LangChain leaves `additionalProperties` out of the schemas of tools.
SHORT = {token_of(text): 100 for text in ("{}", "}", '"}')}
QUESTION = [SystemMessage("짧게 답해."), HumanMessage("서울 날씨 어때?")]


class Weather(pydantic.BaseModel, extra="forbid"):
    """The weather of a city."""

    city: Literal["Seoul", "Busan"]
    celsius: Literal[-5, 0, 21]


class Place(pydantic.BaseModel, extra="forbid"):
    # With no other field, or a model with random weights would add some without end.
    city: Literal["Seoul", "Busan"]


class Wishes(pydantic.BaseModel):
    """What may be left out."""

    city: str = "Seoul"


@tool(args_schema=Place)
def get_weather(city: Literal["Seoul", "Busan"]) -> str:
    """Says the weather of a city."""
    return f"clear in {city}"


def chat(**fields):
    of_all = {"temperature": 0, "max_tokens": 24, "extra_body": AT_ONCE}
    return ChatOpenAI(**SERVER | of_all | fields)


def assert_sums(usage):
    assert usage["input_tokens"] > 0 and usage["output_tokens"] > 0, usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage


def check_chat():
    answer = chat().invoke(QUESTION)
    assert isinstance(answer.content, str) and answer.content, answer
    assert answer.response_metadata["finish_reason"] in ("stop", "length"), answer
    assert answer.response_metadata["model_name"] == MODEL, answer
    assert_sums(answer.usage_metadata)
    assert answer.usage_metadata["output_tokens"] <= 24, answer
    assert chat().invoke(QUESTION).content == answer.content, "greedy decoding is not repeatable"


def check_stop():
    text = chat().invoke(QUESTION).content
    stop = stop_in(text)
    answer = chat().invoke(QUESTION, stop=[stop])
    assert answer.content == text[: text.index(stop)], (answer, stop, text)
    assert answer.response_metadata["finish_reason"] == "stop", answer


def check_stream_with_usage():
    whole = chat().invoke(QUESTION)
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    # LangChain's chunks add up to a message.
    summed = chunks[0]
    for chunk in chunks[1:]:
        summed += chunk
    assert len(chunks) > 3, chunks
    assert summed.content == whole.content, (summed, whole)
    assert summed.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"], summed
    assert_sums(summed.usage_metadata)
    assert summed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"], (summed, whole)
    without = list(chat(stream_usage=False).stream(QUESTION))
    assert all(chunk.usage_metadata is None for chunk in without), without


def check_chain():
    prompt = ChatPromptTemplate.from_messages([("system", "{tone}"), ("human", "{question}")])
    chain = prompt | chat() | StrOutputParser()
    fields = {"tone": "짧게 답해.", "question": "서울 날씨 어때?"}
    assert chain.invoke(fields) == chat().invoke(QUESTION).content


def check_forced_tool_and_its_result():
    forced = chat(max_tokens=60, logit_bias=SHORT).bind_tools([get_weather], tool_choice="get_weather")
    called = forced.invoke(QUESTION)
    assert called.response_metadata["finish_reason"] in ("stop", "tool_calls"), called
    assert not called.invalid_tool_calls, called
    (call,) = called.tool_calls
    assert call["name"] == "get_weather" and call["args"]["city"] in ("Seoul", "Busan"), call
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage) and result.tool_call_id == call["id"], result
    answer = chat(max_tokens=4).bind_tools([get_weather]).invoke([*QUESTION, called, result])
    assert isinstance(answer, AIMessage) and answer.usage_metadata["output_tokens"] <= 4, answer


def check_any_tool_streamed():
    short = chat(max_tokens=60, logit_bias=SHORT)
    forced = short.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    summed = None
    for chunk in forced.stream(QUESTION):
        summed = chunk if summed is None else summed + chunk
    (call,) = summed.tool_calls
    assert call["name"] == "get_weather" and call["id"], call
    assert call["args"]["city"] in ("Seoul", "Busan"), call
    assert summed.response_metadata["finish_reason"] == "tool_calls", summed


def check_structured_output():
    for method in ("json_schema", "function_calling"):
        form = chat(max_tokens=300).with_structured_output(Weather, method=method, include_raw=True)
        answer = form.invoke(QUESTION)
        assert answer["parsing_error"] is None, answer
        assert isinstance(answer["parsed"], Weather), answer
    form = chat(max_tokens=300).with_structured_output(Weather.model_json_schema(), method="json_schema")
    Weather.model_validate(form.invoke(QUESTION))
    parts = list(chat(max_tokens=300).with_structured_output(Weather).stream(QUESTION))
    assert isinstance(parts[-1], Weather), parts


def check_json_mode():
    form = chat(logit_bias=SHORT).with_structured_output(Wishes, method="json_mode", include_raw=True)
    answer = form.invoke(QUESTION)
    assert answer["parsed"] == Wishes() and answer["parsing_error"] is None, answer
    assert json.loads(answer["raw"].content) == {}, answer


def check_batch():
    questions = [[HumanMessage(f"{n} + {n}?")] for n in range(6)]
    alone = [chat().invoke(question).content for question in questions]
    together = chat().batch(questions, config={"max_concurrency": 6})
    assert [answer.content for answer in together] == alone, "the batch changed a text"


def check_async():
    async def ask():
        whole, chunks = await asyncio.gather(
            chat().ainvoke(QUESTION),
            collect(chat().astream(QUESTION)),
        )
        assert "".join(chunk.content for chunk in chunks) == whole.content, (chunks, whole)
        many = await chat().abatch([QUESTION] * 3)
        assert {answer.content for answer in many} == {whole.content}, many

    async def collect(stream):
        return [chunk async for chunk in stream]

    asyncio.run(ask())


def check_logprobs():
    answer = chat(logprobs=True, top_logprobs=3).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert len(tokens) >= answer.usage_metadata["output_tokens"] - 1, answer
    for token in tokens:
        assert token["logprob"] <= 0 and len(token["top_logprobs"]) == 3, token
        assert token["logprob"] == token["top_logprobs"][0]["logprob"], token


def check_several_answers():
    result = chat(n=3, temperature=1.0, seed=5).generate([QUESTION])
    (generations,) = result.generations
    assert len(generations) == 3, result
    assert len({generation.text for generation in generations}) > 1, "every choice is the same"
    usage = result.llm_output["token_usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], usage


def check_completion():
    llm = OpenAI(**SERVER, temperature=0, max_tokens=8)
    text = llm.invoke("Once upon a time")
    assert text and "".join(llm.stream("Once upon a time")) == text, text
    several = llm.generate(["Once upon a time", "서울은"])
    assert several.generations[0][0].text == text and len(several.generations) == 2, several
    assert several.generations[0][0].generation_info["finish_reason"] in ("stop", "length"), several


def check_refusals():
    error = expect(openai.BadRequestError, lambda: chat(temperature=-1).invoke(QUESTION))
    assert error.param == "temperature" and "-1" in error.message, error
    error = expect(openai.BadRequestError, lambda: chat().invoke([HumanMessage("word " * 50_000)]))
    assert "token" in error.message and error.body["code"] == "context_length_exceeded", error
    error = expect(openai.NotFoundError, lambda: chat(model="no-such-model").invoke(QUESTION))
    assert "no-such-model" in error.message and MODEL in error.message, error
    wrong_schema = {"title": "w", "type": "object", "properties": {"a": {"not": {}}}}
    form = chat().with_structured_output(wrong_schema, method="json_schema")
    error = expect(openai.BadRequestError, lambda: form.invoke(QUESTION))
    assert error.param.startswith("response_format"), error


def check_responses():
    responses = chat(use_responses_api=True)
    answer = responses.invoke(QUESTION)
    assert answer.text and answer.response_metadata["id"].startswith("resp_"), answer
    assert_sums(answer.usage_metadata)
    streamed = None
    for chunk in responses.stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text == answer.text, (streamed, answer)


def check_embeddings_are_refused():
    # Texts as they are, since the tokenizer of OpenAI's models would have to be fetched.
    embeddings = OpenAIEmbeddings(**SERVER, check_embedding_ctx_length=False)
    error = expect(openai.BadRequestError, lambda: embeddings.embed_query("x"))
    assert "/v1/embeddings is not implemented" in error.message, error


checks.run(
    [
        check_chat,
        check_stop,
        check_stream_with_usage,
        check_chain,
        check_forced_tool_and_its_result,
        check_any_tool_streamed,
        check_structured_output,
        check_json_mode,
        check_batch,
        check_async,
        check_logprobs,
        check_several_answers,
        check_completion,
        check_refusals,
        check_responses,
        check_embeddings_are_refused,
    ]
)
