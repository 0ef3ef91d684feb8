"""Writes chat_templates.json.gz: templates with what Jinja2, set up as transformers sets it up, makes
of them. Run with jinja2 3.1 installed; the file is committed, so the tests need no Python."""

import gzip
import json
import pathlib

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """Accepts {% generation %} and renders its body."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception

CHAT = [
    {"role": "system", "content": "  간결하게. "},
    {"role": "user", "content": "Hi <b> & 'you'\n"},
    {"role": "assistant", "content": "안녕 👩‍👩‍👧", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": [1.5, None, True], "z": {"é": "\u0007\"\\"}}}}
    ]},
    {"role": "tool", "content": "{\"ok\": true}"},
    {"role": "user", "content": "more"},
]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "날씨", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["서울", "부산"]}, "n": {"type": "number", "minimum": 0.5, "maximum": 1e22}}, "required": []}}}]

LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

SOURCES = {
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "whitespace": "  {% if true %}\n  a\n    {% for m in messages %}\n  - {{ m.role }}\n    {% endfor %}\n  {%+ if true %}b{% endif +%}\n{# note #}\nc {{- ' d ' -}}  \n e\n{% endif %}\n\n",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if m.role == 'tool' %}{% break %}{% endif %}{{ loop.index }}:{{ m.role }} {% endfor %}",
    "generation tags": "{% for m in messages %}\n{%- if m.role == 'assistant' %}\n{% generation %}\n  {{ m.content }}{{ eos_token }}\n{% endgeneration %}\n{%- generation -%} x {%- endgeneration -%}\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}",
    "tojson": "{{ messages | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[2] | tojson(ensure_ascii=True) }}|{{ messages[2] | tojson(separators=(',', ':')) }}|{{ messages[2] | tojson(sort_keys=True) }}|{{ {'b': 1, 'a': [], 'c': {}} | tojson(indent=1, sort_keys=true) }}|{{ 'x' | tojson }}|{{ none | tojson }}|{{ [1e16, 0.00001, -0.0] | tojson }}",
    "printing": "{{ true }} {{ none }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ [1, 'a', true, none] }} {{ {'a': 1.5, 'b': 'x'} }} {{ undefined_name }}|{{ 'a' ~ 1 ~ none }}",
    "strings": "{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ 'a  b'.split() }}|{{ 'a-b-c'.split('-', 1)[1] }}|{{ 'ab'.upper() }}|{{ 'Hello'.replace('l', 'L') }}|{{ 'abc'.startswith('ab') }}|{{ 'abc'[::-1] }}|{{ 'abc'[-2:] }}|{{ 'a\\nb\\n'.splitlines() }}|{{ '-'.join(['x', 'y']) }}|{{ 'hello world'.title() }}|{{ 'abc'.find('c') }}|{{ '%s=%d' | format('n', 3) }}|{{ 'x' in 'xyz' }}|{{ 'ß'.isalpha() }}|{{ 'a' * 3 }}|{{ 'h' 'i' }}",
    "collections": "{{ messages | map(attribute='role') | join(',') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='content') | join(' / ') }}|{% for k, v in messages[2].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }};{% endfor %}|{% for k, v in messages[3] | items %}{{ k }}:{{ v }}{% endfor %}|{{ messages[0].get('name', 'none') }}|{{ messages[0].get('name') }}|{{ [1, 2] + [3] }}|{{ (messages[::-1] | first).content }}|{{ range(3) | list }}|{{ [3, 1, 2] | sort }}|{{ dict(a=1) }}|{{ messages[-1].content }}|{{ {'a': 1} | length }}|{{ [1,2,3] | max }}|{{ messages[0].keys() | list }}",
    "namespace and macro": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% endfor %}{{ ns.n }} {{ ns.last }}{% macro turn(role, text='-') %}<{{ role }}>{{ text }}{% endmacro %} {{ turn('user') }} {{ turn('a', text='b') }}{% set block %}x{{ ns.n }}{% endset %}{{ block }}",
    "tests": "{{ messages is iterable }} {{ messages[0] is mapping }} {{ messages[0].content is string }} {{ messages[0].name is defined }} {{ messages[0].name is undefined }} {{ none is none }} {{ 3 is number }} {{ tools is not none }} {{ 'a' is in ['a'] }} {{ true is boolean }} {{ messages is sequence }} {{ 4 is divisibleby(2) }} {{ messages[0].missing | default('d') }} {{ '' | default('e', true) }}",
    "conditions": "{{ 'y' if tools else 'n' }} {{ 'z' if false }} {{ not add_generation_prompt }} {{ 1 < 2 < 3 }} {{ (1, 2)[1] }} {% if messages[0].missing %}bad{% else %}ok{% endif %} {% for x in [] %}{% else %}empty{% endfor %} {% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }}{% if not loop.last %}, {% endif %}{% endfor %} {{ loop is defined }} {% set a, b = 1, 2 %}{{ a }}{{ b }}{% with q = 3 %}{{ q }}{% endwith %}",
    "refusal": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools: ' + m.role) }}{% endif %}{% endfor %}",
    "undefined attribute": "{{ messages[0].missing.deeper }}",
    "undefined sum": "{{ messages[0].missing + 'x' }}",
}

cases = []
for name, source in SOURCES.items():
    for label, messages, tools, generation in [("full", CHAT, TOOLS, True), ("short", CHAT[:2], None, False), ("no system", CHAT[1:2], None, True)]:
        case = {"name": f"{name}, {label}", "source": source, "messages": messages, "tools": tools, "add_generation_prompt": generation}
        try:
            case["rendered"] = env.from_string(source).render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=generation,
                bos_token="<s>", eos_token="</s>")
        except Exception as error:
            case["error"] = str(error)
            case["refused"] = type(error) is jinja2.exceptions.TemplateError
        cases.append(case)

path = pathlib.Path(__file__).with_name("chat_templates.json.gz")
lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
text = "[\n" + ",\n".join(lines) + "\n]\n"
path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
for case in cases:
    print(case["name"], "->", case.get("error", "ok"))
