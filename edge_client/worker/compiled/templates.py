# SPDX-License-Identifier: Apache-2.0
"""Chat templates as transformers renders them: Jinja in a sandbox, with the names that templates count on.

What a template may use beside Jinja's own: `raise_exception`, `strftime_now`, `tojson` that leaves signs and letters as
they are, `break` and `continue`, and blocks `generation` (transformers.utils.chat_template_utils, whose documentation
they are of). A template is foreign code: what it can reach is plain data, and names that begin with an underscore are
out of reach."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["rendered"]


def rendered(template: str, messages: Sequence[Mapping[str, Any]], specials: Mapping[str, str], *, asks: bool) -> str:
    """A conversation's text.

    Args:
        template: Jinja.
        messages: With `role` and `content`; keys without a value count as not there.
        specials: The tokenizer's special tokens by name, such as `eos_token`.
        asks: With what comes before an answer.

    Raises:
        jinja2.TemplateError: The template is wrong, or refuses the conversation.

    Example:
        >>> rendered("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", [{"role": "user",
        ...     "content": "Hi."}], {"eos_token": "</s>"}, asks=True)
        'Hi.</s>'
    """
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    return _made(template).render(messages=plain, tools=None, documents=None, add_generation_prompt=asks, **specials)


@lru_cache(maxsize=8)
def _made(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dictionaries(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; for the text it is nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return str(caller())


class _Dictionaries:
    """`dict` without what else hangs on the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As a dict's."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` that holds no names with an underscore before them."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        found = dict(*rest, **values)
        for name in found:
            _check_name(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: it begins with an underscore")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
