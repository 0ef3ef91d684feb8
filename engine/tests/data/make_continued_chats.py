"""Writes continued_chats.json.gz: the prompts that transformers makes of chats whose last message is to be
continued, for the templates of chat_templates.json.gz.

    pip install transformers==5.24.0 jinja2==3.1.6 && python make_continued_chats.py
"""

import gzip
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

here = pathlib.Path(__file__).parent
templates = {}
for case in json.loads(gzip.decompress((here / "chat_templates.json.gz").read_bytes())):
    name = case["name"].split(",")[0]
    if name in ("llama3", "llama2", "chatml"):
        templates[name] = case["source"]
templates["trims"] = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
templates["drops a first line break"] = "{% for m in messages %}<{{ m.role }}>{{ m.content.lstrip('\\n') }}</>{% endfor %}"

cases = []
for name, source in templates.items():
    for content in ["Sure, ", "Sure,", " Sure", "안녕\n", "hi", "a\n\n b ", "<think>\nso\n</think>\n\nYes"]:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
        rendered, _ = render_jinja_template(
            [messages], chat_template=source, continue_final_message=True, bos_token="<s>", eos_token="</s>"
        )
        cases.append({"source": source, "messages": messages, "rendered": rendered[0]})
text = json.dumps(cases, ensure_ascii=False, indent=1) + "\n"
(here / "continued_chats.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
