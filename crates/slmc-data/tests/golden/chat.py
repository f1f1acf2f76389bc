#!/usr/bin/env python3
"""Makes chat.json: chats written out by Jinja2, set up as transformers' apply_chat_template sets it up.

usage: chat.py > chat.json      (needs jinja2; values in the repository are those of jinja2 3.1.6)
"""
import json

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
environment.filters['tojson'] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

# ChatML with a default system message: the template of SmolLM2-Instruct (Apache-2.0).
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

# What other families' templates do, in one: whitespace control, slices, namespaces, tests, Python's methods.
EVERYTHING = """{{- bos_token }}
{%- set ns = namespace(last=-1, names=[]) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- for message in messages[::-1] %}
    {%- if ns.last == -1 and message.role == "user" and message.content is string %}
        {%- set ns.last = (messages | length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
<<SYS>>{{ system }}<</SYS>> {{ ns.last }}
{% for message in messages %}
    {% if loop.index0 > 8 %}
        {% break %}
    {% endif %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '[' + message['role'].upper() + '] ' + content.strip() + ('!' if content.endswith('?') else '') }}
    {%- if tools is defined %}{{ tools | tojson }}{% endif %}

{% endfor %}
{{ messages | tojson }}{{ {'a': [1, none, true]} | tojson(indent=2) }}{{ eos_token }}
{%- if add_generation_prompt %}
    {{- '[ASSISTANT] ' }}
{%- endif %}
"""


def chat(*turns):
    return [{'role': role, 'content': content} for role, content in turns]


CHATS = [
    chat(('user', 'Hi <b>& "x" \' é')),
    chat(('system', ' be brief\n'), ('user', '1+1?'), ('assistant', '<think>\nhm\n</think>\n\n2'), ('user', 'sure? '),
         ('assistant', 'yes\n')),
]

cases = []
for template in (CHATML, EVERYTHING):
    for messages in CHATS:
        for go_on in (False, True):
            text = environment.from_string(template).render(
                messages=messages, add_generation_prompt=go_on, bos_token='<s>', eos_token='</s>')
            cases.append({'template': template, 'messages': messages, 'add_generation_prompt': go_on, 'text': text})
print(json.dumps(cases, ensure_ascii=False, indent=1))
