# SPDX-License-Identifier: Apache-2.0
"""How a command is put to the model: the chat form that it was made with, without a system text, which would cost a
third of each step."""

from __future__ import annotations

__all__ = ["END", "TEMPLATE", "prompt"]

END = "<|im_end|>"
"""The token that ends an answer."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of the job, in Jinja."""


def prompt(command: str) -> str:
    """What the model reads before it answers, as the template has it.

    >>> prompt("stop the timer")
    '<|im_start|>user\\nstop the timer<|im_end|>\\n<|im_start|>assistant\\n'
    """
    return f"<|im_start|>user\n{command}<|im_end|>\n<|im_start|>assistant\n"
