"""What each command does: calls the API with the parsed arguments, has the result printed.

Rule of this file: nothing heavy is imported with it; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minimemo.cli.screen import (
    Bar,
    print_answer,
    print_listing,
    print_memo,
    print_usage,
    progress,
    quality,
    shell_word,
    told_json,
)
from minimemo.errors import InputError, MinimemoError
from minimemo.files import size
from minimemo.runtime import RunOptions

if TYPE_CHECKING:
    from minimemo.ask.endpoint import Endpoint
    from minimemo.memo.asking import Asking
    from minimemo.memo.store import Store


def pull(arguments: argparse.Namespace) -> None:
    from minimemo.hub.catalog import CATALOG, defaults, pull

    for name in arguments.name or defaults():
        with progress(arguments.quiet) as on_event:
            path = pull(name, on_event)
            if name not in CATALOG or CATALOG[name].kind == "decoder":
                from minimemo.hub.folder import as_directory

                path = as_directory(path, on_event)
        print(f"{name}: {path}")


def calibrate(arguments: argparse.Namespace) -> None:
    from minimemo.memo.calibrate import calibrate
    from minimemo.runtime import load_model
    from minimemo.text.document import read_document

    texts = [read_document(path, arguments.encoding).text for path in arguments.text]
    with progress(arguments.quiet) as on_event:
        profile = calibrate(load_model(arguments.model, on_event=on_event), texts, on_event=on_event)
    print(f"{arguments.model}: profile {profile.hash}")


def build(arguments: argparse.Namespace) -> None:
    from minimemo.memo.build import build

    with progress(arguments.quiet) as on_event:
        memo = build(
            arguments.document,
            arguments.out,
            model=arguments.model,
            embedder=arguments.embedder,
            memory=arguments.memory,
            budget=arguments.budget,
            window=arguments.window,
            encoding=arguments.encoding,
            prompts=_prompts(arguments),
            options=_options(arguments),
            on_event=on_event,
        )
    told = memo.inspect()
    memory = told["memory"]
    print(
        f"{told['path']}: {memory['tokens']:,} tokens, memory {size(memory['bytes'])} "
        f"({memory['ratio_to_fp16']:.1f}x smaller than fp16 KV), {size(told['bytes'])} in all\n"
        f"quality: {quality(told['quality'])}\n"
        f'ask it: minimemo ask {shell_word(told["path"])} "your question"'
    )


def ask(arguments: argparse.Namespace) -> None:
    folders, question = _memos_and_question(arguments.words, arguments.all)
    if arguments.generator and arguments.mode == "memory":
        raise InputError("--mode memory answers from the memory's own model: leave --generator out, or ask in another")
    with progress(arguments.quiet) as on_event:
        asked = _store(arguments, on_event) if arguments.all else _open(arguments, folders, on_event)

        def answer(question: str) -> None:
            steps = asked.stream(question, arguments.mode, arguments.max_tokens)
            named = arguments.all or len(folders) > 1
            print_answer(steps, on_event, as_json=arguments.json, clues=arguments.show_clues, named=named)

        if question is not None:
            answer(sys.stdin.read() if question == "-" else question)
            return
        asked.prepare()  # models first, so that the prompt appears when it can be answered
        for line in _questions(on_event):
            try:
                answer(line)
            except MinimemoError as error:
                print(f"minimemo: {error}", file=sys.stderr)


def _memos_and_question(words: Sequence[str], every: bool) -> tuple[list[str], str | None]:
    """Every word but the last is a memo, and so is the last one when it looks like one; else it is the question."""
    if every:
        if len(words) > 1:
            raise InputError(f"ask --all takes one question and no memos, not {len(words)} words: quote the question")
        return [], words[0] if words else None
    if not words:
        raise InputError("ask: name a memo, or --all for all on this machine; make one: minimemo build DOCUMENT")
    *memos, last = words
    if not memos or last.endswith(".memo") or (last and os.path.isdir(last)):
        return [*words], None
    return memos, last


def _questions(on_event: Bar) -> Iterator[str]:
    """Lines typed at a prompt; ends with end of file."""
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401 (line editing and history for input())
    while True:
        on_event.clear()
        prompt = "? " if sys.stdin.isatty() else ""
        if not sys.stdout.isatty():  # what is piped on is answers alone
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip():
            yield line


def summarize(arguments: argparse.Namespace) -> None:
    with progress(arguments.quiet) as on_event:
        asked = _open(arguments, arguments.memo, on_event)
        steps = asked.session().stream_summary(arguments.max_tokens)
        print_answer(steps, on_event, as_json=arguments.json, clues=arguments.show_clues)


def inspect(arguments: argparse.Namespace) -> None:
    from minimemo.memo.memo import open_memo

    told = open_memo(arguments.memo).inspect()
    if arguments.json:
        print(told_json(told))
    else:
        print_memo(told)


def verify(arguments: argparse.Namespace) -> None:
    from minimemo.memo.memo import open_memo

    with progress(arguments.quiet) as on_event:
        open_memo(arguments.memo).verify(on_event)
    print(f"{arguments.memo}: every checksum is right")


def export(arguments: argparse.Namespace) -> None:
    from minimemo.memo.export import export

    print(f"{export(arguments.memo, arguments.out)}: opens on any machine that has the models")


def listing(arguments: argparse.Namespace) -> None:
    from minimemo.memo.inventory import disk_usage, memos, models

    known = {"models": [] if arguments.du else models(), "memos": memos()}
    usage = disk_usage() if arguments.du else {}
    if arguments.json:
        print(told_json({**known, **({"usage": usage} if arguments.du else {})}))
        return
    print_listing(known["models"], known["memos"])
    if arguments.du:
        print_usage(usage)


def remove(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from minimemo.memo.shelf import remove

    for memo in arguments.memo:
        print(f"{memo}: deleted, {size(remove(Path(memo)))} free")


def _open(arguments: argparse.Namespace, folders: Sequence[str], on_event: Bar) -> Asking:
    from minimemo.memo.memo import open_memos

    return open_memos(
        folders,
        model=arguments.model,
        embedder=arguments.embedder,
        prompts=_prompts(arguments),
        options=_options(arguments),
        on_event=on_event,
        generator=_generator(arguments),
    )


def _store(arguments: argparse.Namespace, on_event: Bar) -> Store:
    from minimemo.memo.store import open_store

    return open_store(
        model=arguments.model,
        embedder=arguments.embedder,
        prompts=_prompts(arguments),
        options=_options(arguments),
        on_event=on_event,
        generator=_generator(arguments),
    )


def _generator(arguments: argparse.Namespace) -> Endpoint | str | None:
    from minimemo.ask.endpoint import Endpoint, is_address

    if is_address(arguments.generator):
        return Endpoint(arguments.generator, arguments.generator_model or "")
    if arguments.generator_model:
        mend = "begin its address with http://" if arguments.generator else "give its address with --generator"
        raise InputError(f"--generator-model names a model of an endpoint: {mend}")
    named: str | None = arguments.generator
    return named


def _options(arguments: argparse.Namespace) -> RunOptions:
    return RunOptions(dtype=arguments.dtype, kv_dtype=arguments.kv_dtype, threads=arguments.threads)


def _prompts(arguments: argparse.Namespace) -> Any:
    from minimemo.ask import PROMPTS, load_prompts

    return load_prompts(arguments.prompts) if arguments.prompts else PROMPTS
