"""Writes jinja_builtins.json.gz: expressions with Jinja2's tests, filters, globals and Python's methods,
and what Jinja2, set up as transformers sets it up, makes of each.

    pip install jinja2==3.1.6 && python make_jinja_builtins.py
"""

import gzip
import json
import pathlib

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "messages": [
        {"role": "system", "content": "Be brief.", "n": 2},
        {"role": "user", "content": "안녕 <b>세계</b>", "n": 3},
        {"role": "assistant", "content": "", "n": 2, "tool_calls": [{"name": "f", "arguments": {"b": 1, "a": [1.5, None, True]}}]},
    ],
    "text": "  The quick-brown fox_jumps\tover\n the lazy Dog 한국  ",
    "word": "abcabc",
    "d": {"b": 1, "a": 2, "C": 3},
    "items3": [3, 1, 2],
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": [],
    "number": 7,
    "real": 2.5,
}

EXPRESSIONS = [
    # tests
    *[f"{{{{ {value} is {test} }}}}" for test in
      ["boolean", "callable", "defined", "undefined", "none", "number", "integer", "float", "string", "mapping", "sequence", "iterable", "true", "false"]
      for value in ["messages", "messages[0]", "text", "number", "real", "yes", "no", "nothing", "range", "missing"]],
    "{{ 4 is divisibleby 2 }}", "{{ 5 is divisibleby(2) }}", "{{ 3 is odd }}", "{{ 3 is even }}",
    "{{ 'a' is in 'abc' }}", "{{ 'a' is in ['b'] }}", "{{ 'b' is in d }}", "{{ 1 is eq 1 }}", "{{ 1 is equalto 1.0 }}", "{{ 1 is ne 2 }}",
    "{{ 1 is lt 2 }}", "{{ 1 is lessthan 0 }}", "{{ 2 is le 2 }}", "{{ 3 is gt 2 }}", "{{ 3 is greaterthan 4 }}", "{{ 3 is ge 4 }}",
    "{{ 'abc' is lower }}", "{{ 'Abc' is upper }}", "{{ none is sameas none }}", "{{ true is sameas true }}", "{{ 1 is sameas true }}", "{{ yes is sameas(true) }}",
    "{{ 'upper' is filter }}", "{{ 'nope' is filter }}", "{{ 'even' is test }}", "{{ 'x' is escaped }}", "{{ messages[0].tool_calls is defined and messages[0].tool_calls }}",
    "{{ not nothing is none }}", "{{ number is not string }}",
    # filters
    "{{ -3 | abs }}", "{{ messages[0] | attr('role') }}", "{{ [1,2,3,4,5] | batch(2) | list }}", "{{ [1,2,3] | batch(2, 'x') | list }}",
    "{{ 'hello World' | capitalize }}", "{{ 'ab' | center(6) }}|", "{{ items3 | count }}", "{{ missing | default('x') }}", "{{ '' | d('x', true) }}", "{{ nothing | default('x') }}", "{{ nothing | default('x', boolean=true) }}",
    "{{ d | dictsort }}", "{{ d | dictsort(false, 'value') }}", "{{ d | dictsort(case_sensitive=true) }}", "{{ d | dictsort(reverse=true) }}",
    "{{ '<a>' | escape }}", "{{ '<a>' | e }}", "{{ '<a>' | forceescape }}", "{{ items3 | first }}", "{{ empty | first is defined }}", "{{ '3.5' | float }}", "{{ 'x' | float(1.5) }}",
    "{{ '%s-%03d' | format('a', 7) }}", "{{ '%.2f' | format(2.5) }}", "{{ '%(a)s' | format(a=1) }}",
    "{% for key, group in messages | groupby('n') %}{{ key }}:{{ group | map(attribute='role') | join(',') }};{% endfor %}",
    "{% for group in messages | groupby('n') %}{{ group.grouper }}={{ group.list | length }};{% endfor %}",
    "{% for key, group in messages | groupby('missing', default='-') %}{{ key }}{{ group | length }}{% endfor %}",
    "{{ 'a\nb\nc' | indent }}", "{{ 'a\nb' | indent(2, true) }}", "{{ 'a\n\nb' | indent(2, blank=true) }}", "{{ 'a\nb' | indent(width=1, first=true) }}",
    "{{ '42' | int }}", "{{ 'x' | int }}", "{{ 'x' | int(7) }}", "{{ '0x1f' | int(base=16) }}", "{{ 3.9 | int }}", "{{ '3.9' | int }}",
    "{{ d | items | list }}", "{{ missing | items | list }}", "{{ items3 | join }}", "{{ items3 | join('-') }}", "{{ messages | join(',', attribute='role') }}",
    "{{ items3 | last }}", "{{ text | length }}", "{{ '한국' | length }}", "{{ 'abc' | list }}", "{{ d | list }}", "{{ 'ABC' | lower }}",
    "{{ messages | map(attribute='role') | list }}", "{{ messages | map(attribute='missing', default='-') | list }}", "{{ ['a', 'b'] | map('upper') | list }}", "{{ ['a-b', 'c'] | map('replace', '-', '+') | join(',') }}", "{{ messages | map(attribute='tool_calls.0.name') | list }}",
    "{{ items3 | max }}", "{{ items3 | min }}", "{{ ['b', 'A'] | max }}", "{{ messages | max(attribute='n') | attr('role') }}", "{{ ['b', 'A'] | min(case_sensitive=true) }}",
    "{{ items3 | reject('odd') | list }}", "{{ [0, 1, '', 'a'] | reject | list }}", "{{ messages | rejectattr('tool_calls') | list | length }}", "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}",
    "{{ 'aaa' | replace('a', 'b') }}", "{{ 'aaa' | replace('a', 'b', 2) }}", "{{ 'abc' | reverse }}", "{{ items3 | reverse | list }}", "{{ 2.345 | round(2) }}", "{{ 2.5 | round }}", "{{ 2.1 | round(method='ceil') }}", "{{ 2.9 | round(0, 'floor') }}", "{{ '<a>' | safe }}",
    "{{ items3 | select('odd') | list }}", "{{ [0, 1, '', 'a'] | select | list }}", "{{ items3 | select('gt', 1) | list }}", "{{ messages | selectattr('tool_calls') | list | length }}", "{{ messages | selectattr('tool_calls', 'defined') | list | length }}", "{{ messages | selectattr('role', 'in', ['user', 'system']) | list | length }}", "{{ messages | selectattr('n', 'ge', 3) | map(attribute='role') | first }}", "{{ messages | selectattr('role', '==', 'user') | list | length }}",
    "{{ [1,2,3,4,5] | slice(2) | list }}", "{{ [1,2,3,4,5] | slice(2, 'x') | list }}", "{{ items3 | sort }}", "{{ items3 | sort(reverse=true) }}", "{{ ['b', 'A', 'c'] | sort }}", "{{ ['b', 'A', 'c'] | sort(case_sensitive=true) }}", "{{ messages | sort(attribute='role') | map(attribute='role') | list }}", "{{ messages | sort(attribute='n,role') | map(attribute='role') | list }}",
    "{{ 12 | string }}", "{{ true | string }}", "{{ [1, 'a'] | string }}", "{{ '<b>a</b>  b' | striptags }}", "{{ items3 | sum }}", "{{ messages | sum(attribute='n') }}", "{{ items3 | sum(start=10) }}", "{{ 'hello world-wide' | title }}", "{{ \"it's\" | title }}",
    "{{ d | tojson }}", "{{ messages[2] | tojson }}", "{{ messages[1] | tojson(ensure_ascii=true) }}", "{{ d | tojson(indent=2) }}", "{{ d | tojson(sort_keys=true) }}", "{{ d | tojson(separators=(',', ':')) }}", "{{ [1, 2.0, 1e30, -0.0, '\\u2028'] | tojson }}", "{{ [] | tojson(indent=4) }}", "{{ {} | tojson(indent=4) }}", "{{ '<&>' | tojson }}", "{{ 123456789012345678 | tojson }}",
    "{{ '  a ' | trim }}|", "{{ 'xxaxx' | trim('x') }}", "{{ 'foo bar baz qux' | truncate(9) }}", "{{ 'foo bar baz qux' | truncate(9, true) }}", "{{ 'foo bar' | truncate(20) }}", "{{ 'foo bar baz qux' | truncate(length=9, end='~') }}", "{{ 'foo bar baz qux' | truncate(11, false, '…', leeway=0) }}", "{{ [1, 2, 1] | unique | list }}", "{{ ['a', 'A', 'b'] | unique | list }}", "{{ messages | unique(attribute='n') | map(attribute='role') | list }}", "{{ 'abc' | upper }}", "{{ 'a b&c/한' | urlencode }}", "{{ {'a': 1, 'b c': 'd'} | urlencode }}", "{{ text | wordcount }}", "{{ 'Hello, world_1!' | wordcount }}",
    # globals
    "{{ range(4) | list }}", "{{ range(1, 4) | list }}", "{{ range(10, 0, -3) | list }}", "{{ dict(a=1, b='x') }}", "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}", "{% set j = joiner(', ') %}{% for x in items3 %}{{ j() }}{{ x }}{% endfor %}",
    "{% for x in items3 %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for m in messages %}{{ loop.changed(m.n) }}{% endfor %}", "{% for x in [[1, [2]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    # methods of texts
    *[f"{{{{ {call} }}}}|" for call in [
        "text.strip()", "text.lstrip()", "text.rstrip()", "text.split()", "text.split('o')", "text.split(' ', 1)", "text.split(maxsplit=2)", "text.rsplit(' ', 1)", "text.rsplit()", "word.rsplit('b', 1)", "text.splitlines()", "text.splitlines(true)", "text.upper()", "text.lower()", "text.title()", "text.strip().capitalize()", "'aBc'.swapcase()", "'Straße'.casefold()",
        "word.startswith('ab')", "word.startswith(('x', 'a'))", "word.endswith('bc')", "word.endswith(('x', 'c'))", "word.startswith('b', 1)", "word.find('b')", "word.find('b', 2)", "word.find('z')", "word.rfind('b')", "word.index('b')", "word.rindex('b')", "word.count('b')", "word.count('z')", "word.replace('b', 'X')", "word.replace('b', 'X', 1)",
        "word.removeprefix('ab')", "word.removeprefix('x')", "word.removesuffix('bc')", "word.removesuffix('x')", "word.partition('b')", "word.partition('z')", "word.rpartition('b')", "word.rpartition('z')", "'7'.zfill(3)", "'-7'.zfill(4)", "'ab'.ljust(4)", "'ab'.rjust(4, '.')", "'ab'.center(5, '*')", "','.join(['a', 'b'])", "'{} {}'.format(1, 'a')", "'{0}{1}{0}'.format('a', 'b')", "'{a}'.format(a=1)", "'a\\tb'.expandtabs(4)",
        "'abc'.isalpha()", "'12'.isdigit()", "'12'.isnumeric()", "'12'.isdecimal()", "'a1'.isalnum()", "'  '.isspace()", "''.isspace()", "'abc'.islower()", "'ABC'.isupper()", "'Abc Def'.istitle()", "'abc'.isascii()", "'한'.isascii()", "'a_1'.isidentifier()", "'xabcx'.strip('x')", "'xabcx'.lstrip('xa')", "'xabcx'.rstrip('xc')",
        # of lists and dictionaries
        "d.items() | list", "d.keys() | list", "d.values() | list", "d.get('a')", "d.get('z')", "d.get('z', 0)", "items3.index(1)", "items3.count(1)", "[1, 1, 2].count(1)", "'a' in d", "'z' not in d", "d['a']", "d.a", "d['z'] is defined",
        # slices and operators
        "word[1:]", "word[:-1]", "word[::-1]", "word[::2]", "items3[1:]", "items3[-1]", "items3[::-1]", "items3 + [9]", "'a' ~ 1 ~ none ~ 2.0", "'ab' * 2", "[0] * 3", "7 // 2", "-7 // 2", "7 / 2", "-7 % 3", "2 ** 3", "2 ** -1", "1 if nothing else 2", "yes and 'x' or 'y'", "nothing or 'x'", "1 == 1.0", "'1' == 1", "[1] == [1]", "none == false", "1 < 2 <= 2", "'한' < '국'",
        # what is printed
        "true", "none", "1.0", "1e16", "1e-5", "[true, none, 'a', 1.5]", "{'a': none}", "(1, 2)", "(1,)", "'it\\'s'", "['it\\'s', 'say \"hi\"']", "missing", "[missing is defined]", "0.1 + 0.2", "10 ** 20", "1_000",
    ]],
    # statements
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}", "{% set x | upper %}ab{% endset %}{{ x }}", "{% filter upper %}ab{% endfilter %}", "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}", "{% raw %}{{ x }}{% endraw %}", "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}", "{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for x in items3 if x > 1 %}{{ x }}{% else %}-{% endfor %}", "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}", "{% set a, b = 1, 2 %}{{ b }}", "{% do 1 %}x", "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{{ raise_exception('no') }}",
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


env = environment()
cases = []
for source in dict.fromkeys(EXPRESSIONS):
    try:
        cases.append({"source": source, "rendered": env.from_string(source).render(**CONTEXT)})
    except Exception as error:
        cases.append({"source": source, "error": f"{type(error).__name__}: {error}"})
path = pathlib.Path(__file__).with_name("jinja_builtins.json.gz")
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
text = '{"context": ' + json.dumps(CONTEXT, ensure_ascii=False) + ',\n"cases": [\n' + lines + "\n]}\n"
path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
