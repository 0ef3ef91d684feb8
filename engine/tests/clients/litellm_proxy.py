"""Drives a running server through LiteLLM's proxy, with OpenAI's client in front.

    python3 litellm_proxy.py http://127.0.0.1:30000/v1

The server needs a model whose chat template is Qwen3's. Nothing here depends on what the model says.
"""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai

import checks
from checks import API_KEY, BASE_URL, MODEL, TIMEOUT_S, expect

# Until the proxy answers; its imports alone take long on a small machine.
START_LIMIT_S = 240
KEY = "sk-of-the-proxy"
AT_ONCE = {"chat_template_kwargs": {"enable_thinking": False}}
USER = [{"role": "user", "content": "서울 날씨 어때?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Seoul", "Busan"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(folder, port):
    routes = {
        "tiny": f"openai/{MODEL}",
        "tiny-vllm": f"hosted_vllm/{MODEL}",
        "unknown": "hosted_vllm/no-such-model",
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": model, "api_base": BASE_URL, "api_key": API_KEY}}
            for name, model in routes.items()
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": TIMEOUT_S},
        "router_settings": {"num_retries": 0},
    }
    # JSON is YAML.
    path = pathlib.Path(folder, "proxy.yaml")
    path.write_text(json.dumps(config))
    program = pathlib.Path(sys.executable).with_name("litellm")
    command = [program, "--config", path, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    log = pathlib.Path(folder, "proxy.log").open("w")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def wait(process, folder, port):
    begun = time.monotonic()
    while time.monotonic() - begun < START_LIMIT_S:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, pathlib.Path(folder, "proxy.log").read_text()[-3000:]
            time.sleep(0.5)
    raise AssertionError(f"the proxy is not ready after {START_LIMIT_S} s")


def chat(model="tiny", **fields):
    fields = {"messages": USER, "max_tokens": 24, "temperature": 0, "extra_body": AT_ONCE} | fields
    return client.chat.completions.create(model=model, **fields)


def check_models():
    assert {model.id for model in client.models.list()} == {"tiny", "tiny-vllm", "unknown"}


def check_chat():
    texts = set()
    for model in ("tiny", "tiny-vllm"):
        answer = chat(model)
        texts.add(answer.choices[0].message.content)
        assert answer.choices[0].finish_reason in ("stop", "length"), answer
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens, answer
    (text,) = texts
    assert text, "no text"


def check_streams():
    for model in ("tiny", "tiny-vllm"):
        whole = chat(model)
        chunks = list(chat(model, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content, (text, whole)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason], reasons
        (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
        assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole)


def check_forms_and_tools():
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
    answer = chat(response_format=form, max_tokens=300)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Seoul", "Busan"), answer
    answer = chat(tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls", answer
    assert json.loads(call.function.arguments)["city"] in ("Seoul", "Busan"), call


def check_completion():
    answer = client.completions.create(model="tiny-vllm", prompt="Once upon a time", max_tokens=8, temperature=0)
    assert answer.choices[0].text and answer.usage.completion_tokens <= 8, answer


def check_refusals():
    error = expect(openai.BadRequestError, lambda: chat(temperature=-1))
    assert "temperature is -1" in error.message, error
    error = expect(openai.NotFoundError, lambda: chat("unknown"))
    assert "no-such-model" in error.message, error
    error = expect(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "word " * 50_000}]))
    assert "tokens" in error.message, error


with tempfile.TemporaryDirectory() as folder:
    port = free_port()
    process = start(folder, port)
    try:
        wait(process, folder, port)
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT_S
        )
        checks.run(
            [
                check_models,
                check_chat,
                check_streams,
                check_forms_and_tools,
                check_completion,
                check_refusals,
            ]
        )
    finally:
        process.terminate()
        process.wait(30)
