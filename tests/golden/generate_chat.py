#!/usr/bin/env python3
"""Write `chat.json`: conversations, chat templates, and what `transformers` renders of them.

    pip install transformers jinja2
    python generate_chat.py --out chat.json
"""
import argparse
import json

TOKENS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None}

CONVERSATIONS = {
    "question": [("user", "What is 2 < 3 & 4?")],
    "system": [("system", "  Be brief.\n"), ("user", "Grüße, 世界")],
    "turns": [("system", "A\nB"), ("user", "one"), ("assistant", " <think>why</think> two "), ("user", "three\n")],
}

TEMPLATES = {
    "turns between marks": "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n' }}{% endfor %}"
                           "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}",
    "lines of blocks": """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = none %}
    {%- set rest = messages %}
{%- endif %}
{%- if tools is not none and tools %}{{ tools | tojson(indent=2) }}{% endif %}
{% for message in rest %}
    {% if loop.first and system %}
[{{ system }}]
    {% endif %}
{{ loop.index0 }}/{{ loop.length }} {{ message.role | upper }}: {{ message.content.strip() }}
    {% if not loop.last %}
---
    {% endif %}
{% endfor %}
{%- if add_generation_prompt -%}
ASSISTANT:{% endif %}""",
    "values": """{%- macro turn(role, text='') -%}
<{{ role }}>{{ text }}</{{ role }}>
{%- endmacro -%}
{%- set state = namespace(users=0, last='') -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set state.users = state.users + 1 -%}{%- endif -%}
  {%- if message.role == 'assistant' and '</think>' in message.content -%}
    {%- set text = message.content.split('</think>')[-1].lstrip() -%}
    {{- turn('assistant', text) -}}
    {%- continue -%}
  {%- endif -%}
  {%- set state.last = message.content -%}
  {{- turn(message.role, message.content | replace('\n', ' ')) -}}
{%- endfor -%}
{{ state.users }} {{ state.last | length }} {{ messages | tojson }} {{ messages | map(attribute='role') | join(', ') }}
{% for key, value in messages[-1].items() %}{{ key ~ '=' ~ value[:3] }};{% endfor %}
{{ messages[-1]['name'] if 'name' in messages[-1] else 'nobody' }} {{ missing is defined }} {{ documents is none }} {{ missing }}
{{ pad_token is defined }} {{ eos_token }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages[0].content.startswith('What') }} {{ {'a': [1, 2.5, true, none, 'é']} | tojson }} {{ messages[::-1][0].role.title() }}
""",
    "training": "{% for m in messages %}{% if m.role == 'assistant' %}\n{%- generation -%}\n {{ m.content }}{{ eos_token }}\n{%- endgeneration %}\n"
                "{% else %}{{ m.role[0] }}: {{ m.content | trim }} {% endif %}{% endfor %}\n{% generation %}>{% endgeneration %}",
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('a system turn is not supported') }}{% endif %}"
                 "{% for message in messages %}{{ message.content }}{{ '\n' if not loop.last }}{% endfor %}",
}


def main():
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="chat.json")
    out = parser.parse_args().out
    named = {name: token["content"] if isinstance(token, dict) else token for name, token in TOKENS.items() if token}
    cases = []
    for title, template in TEMPLATES.items():
        for conversation, turns in CONVERSATIONS.items():
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **named)
                result = {"text": rendered[0]}
            except TemplateError as error:
                result = {"error": str(error)}
            cases.append({"name": f"{title}: {conversation}", "template": template, "messages": messages, **result})
    with open(out, "w") as file:
        json.dump({"tokens": TOKENS, "cases": cases}, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    main()
