"""Chat templates: where the user's text sits between a model's turn markers.

Templates come from strangers. They are rendered by jinja2's sandbox in a child process with a wall-clock limit and, on
Linux, limits on processor time and memory, so a template that loops or grows without end fails instead of hanging
its caller. (Elsewhere only the wall clock bounds it. The child is not isolated from files or network beyond what the
sandbox forbids.) Only markers are rendered in place of a user's text, so a template never sees a document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from minimemo.errors import ModelError

# Wall clock for the child, start of the interpreter on a busy machine included; on Linux its processor time is bounded.
_SECONDS = 300 if sys.platform == "linux" else 30
_CPU_SECONDS = 5
_MEMORY = 1 << 29  # bytes of address space
# The date for templates that ask: with the day's own, the tokens before a document would change daily, and with them
# every block of its memory. It is the one that Llama 3.2's template has for those who tell it none.
_TODAY = datetime(2024, 7, 26)
_LONGEST = 1 << 20  # characters of one rendering

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, the file it came from (named in errors), and its variables (`bos_token`, ...)."""

    text: str
    source: str
    variables: dict[str, str] = field(default_factory=dict)

    def turn(self, system: str | None) -> tuple[str, str]:
        """The text that comes before a user's message (system prompt, turn markers) and the text after it, up to where
        the assistant starts to write.

        A system prompt that the template refuses or leaves out becomes the start of the user's message.
        Raises ModelError where the template fails or does not hold the message exactly once."""
        mark = marker(self.text, system or "")
        user = {"role": "user", "content": mark}
        if system is None:
            rendered = self.render([[user]])[0]
        else:
            folded = {"role": "user", "content": f"{system}\n\n{mark}"}
            first, second = self.render([[{"role": "system", "content": system}, user], [folded]])
            rendered = first if isinstance(first, str) and system.strip() in first else second
        if isinstance(rendered, Failure):
            raise ModelError(f"{self.source}: the chat template failed: {rendered.reason}")
        parts = rendered.split(mark)
        if len(parts) != 2:
            raise ModelError(
                f"{self.source}: the chat template writes the user's message {len(parts) - 1} times, not once"
            )
        return parts[0], parts[1]

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str | Failure]:
        """Each conversation rendered, with the assistant's opening, or why it could not be.

        Raises ModelError where the template breaks the limits of time and memory."""
        job = {
            "template": self.text,
            "variables": self.variables,
            "conversations": conversations,
            "limits": {"cpu": _CPU_SECONDS, "memory": _MEMORY},
        }
        try:
            said = _said(json.dumps(job), _SECONDS)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"{self.source}: the chat template did not finish in {_SECONDS} s; use another one"
            ) from None
        except ChildProcessError as error:
            raise ModelError(f"{self.source}: the chat template broke its limits of time or memory ({error})") from None
        return [r["text"] if "text" in r else Failure(r["failure"]) for r in json.loads(said)]


@lru_cache(maxsize=128)
def _said(job: str, seconds: float) -> str:
    """What a child says to a job. A job that came to its end is not done again: each model that is loaded asks the same
    of its template. Raises ChildProcessError with the last line of its complaint."""
    root = Path(__file__).parents[2]  # a working folder that holds no stranger's modules
    paths = [str(root), *(path for path in sys.path if os.path.isabs(path))]
    child = subprocess.run(
        [sys.executable, "-m", "minimemo.models.chat"],
        input=job,
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if child.returncode != 0:
        raise ChildProcessError((child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1])
    return child.stdout


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a conversation was not rendered; templates refuse on purpose too, by `raise_exception`."""

    reason: str


def marker(*texts: str) -> str:
    """Digits that occur in none of the texts; digits, so that no filter for letters or spaces alters them."""
    number = 7_310_258_946_137
    while any(str(number) in text for text in texts):
        number += 1
    return str(number)


def _render(job: dict[str, Any]) -> list[dict[str, str]]:
    """The child's work. Variables and filters as the templates of the model hub expect them."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks text for training; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    def tojson(value: object, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, "indent": indent, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=refuse, strftime_now=_TODAY.strftime)
    fixed = {"add_generation_prompt": True, "enable_thinking": False, "tools": None, "documents": None}
    rendered: list[dict[str, str]] = []
    for messages in job["conversations"]:
        try:
            template = environment.from_string(job["template"])
            text = template.render(**{**job["variables"], **fixed, "messages": messages})
            if len(text) > _LONGEST:
                raise ValueError(f"{len(text)} characters written for one short message")
            rendered.append({"text": text})
        except Exception as error:  # whatever a stranger's template provokes is told as its failure
            rendered.append({"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
    return rendered


def _limit(cpu: int, memory: int) -> None:
    """Bound this process where the system can (Linux)."""
    if sys.platform == "linux":
        import resource

        for kind, most in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_AS, memory)):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    work = json.loads(sys.stdin.buffer.read())
    _limit(**work["limits"])
    sys.stdout.write(json.dumps(_render(work)))
