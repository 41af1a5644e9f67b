"""What each command does: calls the API with the parsed arguments, has the result printed.

Rule of this file: nothing heavy is imported with it; a command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import localtime, monotonic, sleep, strftime
from typing import Any

from minimemo.cli.screen import (
    Bar,
    as_json,
    plain,
    print_answer,
    print_built,
    print_listing,
    print_memo,
    print_usage,
    progress,
    tell,
)  # fmt: skip
from minimemo.errors import InputError, MinimemoError
from minimemo.events import Listener
from minimemo.files import disk_bytes, size, whole_path
from minimemo.runtime import RunOptions

_NAMED = 3  # documents that failed alike are named up to here, and counted beyond


def pull(arguments: argparse.Namespace) -> None:
    from minimemo.hub.catalog import CATALOG, defaults, pull, writer

    for name in arguments.name or filter(None, [*defaults(), writer()]):
        with progress(arguments.quiet, arguments.verbose) as on_event:
            path = pull(name, on_event)
            if name not in CATALOG or CATALOG[name].kind == "decoder":
                from minimemo.hub.folder import as_directory

                path = as_directory(path, on_event)
        print(plain(f"{name}: {path}"))


def calibrate(arguments: argparse.Namespace) -> None:
    model, texts = arguments.model, arguments.text
    if model is None and len(texts) > 1:  # the word behind the texts
        *texts, model = texts
    if model is None:
        raise InputError("calibrate: name a model; `minimemo list` shows some")
    from minimemo.memo.calibrate import calibrate
    from minimemo.readers import read_document
    from minimemo.runtime import load_model

    read = [read_document(path, arguments.encoding).text for path in texts]
    with progress(arguments.quiet, arguments.verbose) as on_event:
        profile = calibrate(load_model(model, RunOptions(device=arguments.device), on_event), read, on_event=on_event)
    print(f"{model}: profile {profile.hash}")


def build(arguments: argparse.Namespace) -> None:
    from minimemo.memo.build import build
    from minimemo.readers import documents_in

    documents = documents_in(arguments.document)
    if arguments.out and len(documents) > 1:
        raise InputError(
            f"-o names one memo, and there are {len(documents)} documents: leave it out, or build them singly"
        )
    failed: dict[str, MinimemoError] = {}
    targets: set[Path] = set()
    with progress(arguments.quiet, arguments.verbose) as on_event:
        run = _run(arguments, on_event)
        for document in documents:
            out = arguments.out
            if len(documents) > 1 and Path(document).with_suffix(".memo") in targets:  # of a.pdf, where this is a.docx
                out = f"{document}.memo"
            try:
                memo = build(
                    document, out, memory=arguments.memory, budget=arguments.budget, window=arguments.window,
                    encoding=arguments.encoding, errors=arguments.errors, password=arguments.password, **run,
                )  # fmt: skip
            except MinimemoError as error:
                if len(documents) == 1:
                    raise
                failed[document] = error
                continue
            targets.add(Path(document).with_suffix(".memo"))
            run |= {"model": memo.runtime.model, "embedder": memo.runtime.embedder}  # loaded once for all
            on_event.clear()
            print_built(memo.inspect())
    if failed:
        raise _kind(failed.values())(_not_built(failed, len(documents)))


def _kind(errors: Iterable[MinimemoError]) -> type[MinimemoError]:
    """InputError where all of the errors are: nothing but what was given has to be mended."""
    return InputError if all(isinstance(error, InputError) for error in errors) else MinimemoError


def _not_built(failed: Mapping[str, MinimemoError], count: int) -> str:
    """Tells of documents that failed, a line each; documents that failed alike share one."""
    alike: dict[str, list[str]] = {}
    for document, error in failed.items():
        alike.setdefault(str(error).removeprefix(f"{document}: "), []).append(document)
    lines = []
    for reason, documents in alike.items():
        more = f" and {len(documents) - _NAMED} more" if len(documents) > _NAMED else ""
        lines.append(f"\n  {', '.join(documents[:_NAMED])}{more}: {reason}")
    return f"{len(failed)} of {count} documents were not built:{''.join(lines)}"


def sync(arguments: argparse.Namespace) -> None:
    from minimemo.scale.sync import opened, plan

    folder = whole_path(Path(arguments.folder).expanduser())
    name = arguments.name or folder.name
    with progress(arguments.quiet, arguments.verbose) as on_event, opened(folder, name) as collection:
        made = plan(collection, arguments.forget)
        print(plain(_planned(name, made)), flush=True)
        run = _run(arguments, on_event)
        if arguments.dry_run:
            _tell_plan(made)
            _estimate(arguments, collection.folder, made, run, on_event)
            return
        failed = _synced(arguments, collection, made, run, on_event)
        print(plain(f'ask them: minimemo ask --in {shlex.quote(name)} "your question"'), flush=True)
        if arguments.watch:
            _watch(arguments, collection, run, on_event)
    if failed:
        reasons = "".join(f"\n  {path}: {why}" for path, why in failed.items())
        raise InputError(f"{len(failed)} of {len(made.files)} documents have no memo:{reasons}")


def _tell_plan(made: Any) -> None:
    """Names every document that a sync would do something about."""
    for word, paths in (("new", made.new), ("changed", made.changed), ("again", made.failed), ("gone", made.gone)):
        for path in paths:
            print(plain(f"{word:<8} {path}"))
    for path, before in made.moved.items():
        print(plain(f"moved    {before} -> {path}"))
    for path, owner in made.same.items():
        print(plain(f"same     {path} = {owner}"))


def _synced(
    arguments: argparse.Namespace, collection: Any, made: Any, run: dict[str, Any], on_event: Bar
) -> Mapping[str, str]:
    """Brings a collection in step, and gives the documents that failed. Models that were loaded stay in `run`."""
    from minimemo.memo.registry import memos_of
    from minimemo.scale.estimate import learn
    from minimemo.scale.sync import carry_out, one_by_one
    from minimemo.scale.workers import build_in_processes, check_jobs

    jobs = check_jobs(arguments.jobs)

    def told(line: str) -> None:
        on_event.clear()
        print(plain(line), flush=True)

    settings = {name: getattr(arguments, name) for name in ("model", "embedder", "memory", "prompts")}
    _estimate(arguments, collection.folder, made, run, on_event)
    if jobs > 1 or arguments.ray:
        for paths in (made.new, made.changed):
            paths.sort(key=lambda path: -made.files[path].size)  # no long one is left to the end

    def builds(tasks: Any) -> Any:
        if arguments.ray:
            from minimemo.scale.cluster import build_on_cluster

            return build_on_cluster(tasks, arguments.ray, run["options"], settings)
        if jobs == 1:
            return one_by_one(partial(_built, arguments, run))(tasks)
        return build_in_processes(tasks, jobs, run["options"], settings, on_event)

    begun = monotonic()
    failed = carry_out(collection, made, builds, told)
    done = [path for path in made.read if path not in failed]
    memos = sum(disk_bytes(memos_of(collection.name) / f"{path}.memo") for path in done)
    learn(_pace_of(arguments), sum(made.files[path].size for path in done), monotonic() - begun, memos)
    return failed


def _built(
    arguments: argparse.Namespace, run: dict[str, Any], document: Any, memo: Path, sha256: str | None = None
) -> None:
    from minimemo.memo.build import build  # not where nothing changed

    opened = build(document, memo, memory=arguments.memory, sha256=sha256, **run)
    run.update(model=opened.runtime.model, embedder=opened.runtime.embedder)  # loaded once for all


def _pace_of(arguments: argparse.Namespace) -> list[Any]:
    """What the pace of a sync is known by."""
    return [arguments.model, arguments.embedder, arguments.memory]


def _estimate(arguments: argparse.Namespace, folder: str, made: Any, run: dict[str, Any], on_event: Bar) -> None:
    """Says what a sync is going to take. Raises InputError where the disk has no room for it."""
    from minimemo.files import data_dir
    from minimemo.scale.estimate import WORTH, known, measured

    if made.bytes < WORTH:
        return
    if (pace := known(_pace_of(arguments))) is None:
        print("a sample of them is read first, to say how long it will take", flush=True)
        files = {Path(folder) / path: made.files[path].size for path in made.read}
        pace = measured(files, partial(_built, arguments, run))
        on_event.clear()
    if pace is None:
        return
    room = shutil.disk_usage(data_dir()).free
    disk = pace.disk * made.bytes
    print(f"about {_long(pace.seconds * made.bytes)} and {size(disk)}; {size(room)} are free", flush=True)
    if disk > room:
        raise InputError(f"{data_dir()}: has no room for {size(disk)} of memos; make some, or set MINIMEMO_HOME")


def _long(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{max(1, minutes)} min"


def _watch(arguments: argparse.Namespace, collection: Any, run: dict[str, Any], on_event: Bar) -> None:
    """Keeps a collection in step until it is interrupted. The folder is looked through every two seconds, or so seldom
    that it takes a fiftieth of the time."""
    from minimemo.scale.sync import plan

    print("watching; Ctrl-C ends it", flush=True)
    pause, said = 2.0, ""
    while True:
        sleep(pause)
        begun = monotonic()
        try:
            made = plan(collection, arguments.forget, again=False)
            pause = max(2.0, 50 * (monotonic() - begun))
            if made:
                _synced(arguments, collection, made, run, on_event)
            said = ""
        except BrokenPipeError:  # nobody reads along
            raise
        except (MinimemoError, OSError) as error:  # the folder is away, perhaps, or the disk full: that may pass
            if str(error) != said:
                tell(error, json=False)
            said, pause = str(error), max(pause, 10.0)


def _planned(name: str, made: Any) -> str:
    """What a sync is going to do, in a line."""
    counts = (
        ("new", made.new), ("changed", made.changed), ("to try again", made.failed), ("moved", made.moved),
        ("gone", made.gone),
    )  # fmt: skip
    parts = [f"{len(paths)} {word}" for word, paths in counts if paths] + [f"{len(made.kept)} as they were"]
    alike = f"; {made.alike} of the same bytes as others" if made.alike else ""
    work = f"; {size(made.bytes)} of documents to read" if made.bytes else ""
    return f"{name}: {', '.join(parts)}{alike}{work}"


def status(arguments: argparse.Namespace) -> None:
    from minimemo.memo.registry import memos_of
    from minimemo.scale.sync import collections, load

    named = [load(arguments.name)] if arguments.name else collections()
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "folder": one.folder,
            "lost": (lost := one.lost()),
            "documents": sum(not known.error for known in one.documents.values()) - lost,
            "same": sum(bool(known.same) for known in one.documents.values()),
            "failed": {path: known.error for path, known in one.documents.items() if known.error},
            "bytes": disk_bytes(memos_of(one.name)) if memos_of(one.name).is_dir() else 0,
            "synced": one.synced or None,
        }
        for one in named
    ]
    if arguments.json:
        print(as_json({"collections": rows}))
        return
    if not rows:
        print("no collections yet; make one: minimemo sync FOLDER")
    for row in rows:
        many = f"{row['documents']} document{'s' * (row['documents'] != 1)}"
        same = f" ({row['same']} of the same bytes as others)" if row["same"] else ""
        when = strftime("in step at %Y-%m-%d %H:%M", localtime(row["synced"])) if row["synced"] else "not in step yet"
        print(plain(f"{row['name']}: {many}{same} of {row['folder']}, memos {size(row['bytes'])}, {when}"))
        for path, why in row["failed"].items():
            print(plain(f"  no memo of {path}: {why}"))
        if row["lost"]:
            print(f"  memos that are gone: {row['lost']}; the next sync makes them again")


def forget(arguments: argparse.Namespace) -> None:
    from minimemo.scale.sync import delete

    print(plain(f"{arguments.name}: deleted, {size(delete(arguments.name))} free"))


def ask(arguments: argparse.Namespace) -> None:
    if arguments.name and not arguments.within:
        raise InputError("--name chooses documents of a collection: name that with --in")
    folders, question = _memos_and_question(arguments.words, arguments.all or arguments.within is not None)
    if arguments.generator and arguments.mode == "memory":
        raise InputError("--mode memory answers from the memory's own model: leave --generator out, or ask in another")
    with progress(arguments.quiet, arguments.verbose) as on_event:
        asked, device = _open(arguments, folders, on_event), _device(arguments)

        def answer(steps: Any) -> Any:
            named = len(folders) != 1
            return print_answer(
                steps, on_event, json=arguments.json, clues=arguments.show_clues, named=named, device=device
            )

        if question is not None:
            question = sys.stdin.read() if question == "-" else question
            answer(asked.stream(question, arguments.mode, arguments.max_tokens))
            return
        asked.prepare()  # models first, so that the prompt appears when it can be answered
        talk, last = asked.chat(), None
        failed: list[MinimemoError] = []
        for line in _questions(on_event):
            try:
                word, *rest = line.split()
                if line.strip() in ("new", "/new"):
                    talk.forget()
                elif word == "/summary":
                    if not folders:
                        raise InputError("/summary is of memos that are named, not of all")
                    last = answer(asked.session().stream_summary())
                elif word in ("/clues", "/sources"):
                    _more(last, word, rest)
                elif re.fullmatch(r"/\w+", line.strip()):
                    raise InputError(f"{word}: unknown here; there are new, /clues, /sources N, /summary and exit")
                else:
                    if arguments.show_clues and (whole := talk.alone(line)) != line.strip():
                        print(plain(f"[question] {whole}"), file=sys.stderr)
                    last = answer(talk.stream(line, arguments.mode, arguments.max_tokens))
            except MinimemoError as error:
                tell(error, json=arguments.json)
                failed.append(error)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                print("\ndropped; Ctrl-D leaves", file=sys.stderr)
        if failed and not sys.stdin.isatty():
            raise _kind(failed)(f"{len(failed)} questions were not answered")


def _more(answer: Any, word: str, numbers: Sequence[str]) -> None:
    """Prints what the last answer was found by, or the whole of one of its passages, counted from 1."""
    if answer is None:
        raise InputError(f"{word} tells of the last answer: ask something first")
    if word == "/clues":
        lines = [f"[question] {answer.asked}", *(f"[{clue.kind}] {clue.text}" for clue in answer.clues)]
        print("\n".join(map(plain, lines)))
        return
    count = len(answer.passages)
    if len(numbers) != 1 or not numbers[0].isdecimal() or not 1 <= int(numbers[0]) <= count:
        raise InputError(f"the last answer has {count} passages: /sources N shows one, counted from 1")
    print(plain(answer.passages[int(numbers[0]) - 1].text.strip()))


def _memos_and_question(words: Sequence[str], every: bool) -> tuple[list[str], str | None]:
    """Every word but the last is a memo, and so is the last one when it looks like one; else it is the question."""
    if every:
        if len(words) > 1:
            told = f"--all and --in take one question and no memos, not {len(words)} words"
            raise InputError(f"{told}: quote the question")
        return [], words[0] if words else None
    if not words:
        raise InputError("ask: name a memo, or --all for all on this machine; make one: minimemo build DOCUMENT")
    *memos, last = words
    if len(words) > 2 and not any(word.endswith(".memo") or os.path.exists(word) for word in words[1:]):
        raise InputError(f'ask takes a question as one word: minimemo ask {words[0]} "{" ".join(words[1:])}"')
    if not memos or last.endswith(".memo") or (last and os.path.isdir(last)):
        return [*words], None
    return memos, last


def _questions(on_event: Bar) -> Iterator[str]:
    """Lines typed at a prompt, kept for the next session; ends with end of file, `exit` or `quit`."""
    remember = _history() if sys.stdin.isatty() else None
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
        except KeyboardInterrupt:  # it drops what was typed
            if not sys.stdin.isatty():
                raise
            print(file=sys.stderr)
            continue
        if line.strip() in ("exit", "quit", "/exit", "/quit"):
            return
        if line.strip():
            if remember:
                remember()
            yield line


def _history() -> Callable[[], None] | None:
    """Gives input() line editing, with the lines of earlier sessions; returns what keeps a line that was typed, for
    nobody else to read. None where the platform has no readline."""
    try:
        import readline
    except ImportError:
        return None
    from minimemo.files import data_dir

    path = data_dir() / "history"
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)

    def remember() -> None:
        with suppress(OSError):  # where nothing can be written there is no history
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            path.chmod(0o600)
            readline.write_history_file(path)

    return remember


def summarize(arguments: argparse.Namespace) -> None:
    with progress(arguments.quiet, arguments.verbose) as on_event:
        device = _device(arguments)
        steps = _open(arguments, arguments.memo, on_event).session().stream_summary(arguments.max_tokens)
        print_answer(steps, on_event, json=arguments.json, clues=arguments.show_clues, device=device)


def serve(arguments: argparse.Namespace) -> None:
    from minimemo.readers import read_document
    from minimemo.server.run import serve

    key = read_document(arguments.api_key_file).text.strip() if arguments.api_key_file else ""
    if arguments.api_key_file and not key:
        raise InputError(f"{arguments.api_key_file}: is empty; write a key into it")

    def started(address: str, documents: int) -> None:
        many = f"{documents} document{'s' * (documents != 1)}"
        print(plain(f"{many} at {address}; Ctrl-C ends it"), flush=True)

    named = {name: getattr(arguments, name) for name in ("model", "embedder", "generator")}
    options = _options(arguments)
    usual = options == RunOptions(threads=arguments.threads) and not any(named.values())
    access = Path(arguments.access) if arguments.access else None
    serve(
        arguments.memo, arguments.host, arguments.port, key, started=started, shared=usual, access=access,
        options=options, **named,
    )  # fmt: skip


def mcp(arguments: argparse.Namespace) -> None:
    try:
        from minimemo.server.mcp import serve_stdio
    except ImportError as error:
        raise InputError(f"mcp needs the package mcp: pip install 'minimemo[mcp]' ({error})") from error
    options = _options(arguments)
    named = {name: getattr(arguments, name) for name in ("model", "embedder", "generator")}
    serve_stdio(arguments.memo, arguments.allow_writes, options=options, **named)


def inspect(arguments: argparse.Namespace) -> None:
    from minimemo.memo.memo import open_memo
    from minimemo.models.device import choose

    here = choose(os.environ.get("MINIMEMO_DEVICE") or "auto")
    if "://" in arguments.memo:
        from minimemo.scale.objects import open_places

        memo = open_places([arguments.memo])
    else:
        memo = open_memo(arguments.memo)
    facts = {**memo.inspect(), "device": here.facts()}
    if arguments.json:
        print(as_json(facts))
    else:
        print_memo(facts)


def verify(arguments: argparse.Namespace) -> None:
    from minimemo.memo.memo import open_memo

    with progress(arguments.quiet, arguments.verbose) as on_event:
        open_memo(arguments.memo).verify(on_event)
    print(plain(f"{arguments.memo}: every checksum is right"))


def export(arguments: argparse.Namespace) -> None:
    from minimemo.memo.library import export
    from minimemo.scale.archive import pack

    memo, out = Path(arguments.memo), Path(arguments.out)
    asked = arguments.passphrase or arguments.passphrase_file
    if asked and (out.suffix != ".zip" or "://" in arguments.out):
        raise InputError(f"{arguments.out}: a passphrase seals one file here: give it a name that ends in .zip")
    if "://" in arguments.out:
        from minimemo.scale.objects import upload

        address = upload(memo, arguments.out)
        print(plain(f'{address}: minimemo ask {address} "your question"'))
        return
    passphrase = _passphrase(arguments.passphrase_file, twice=True) if asked else None
    made = pack(memo, out, passphrase) if out.suffix == ".zip" else export(memo, out)
    how = "minimemo import opens it" if out.suffix == ".zip" else "opens"
    print(plain(f"{made}: {how} on any machine that has the models"))


def _passphrase(file: str | None, twice: bool = False) -> str:
    """What a file holds, without the line's end; without a file, what is typed. It is never a word of a command line,
    which other users of the machine can read."""
    if file:
        from minimemo.readers import read_document

        return read_document(file).text.strip("\r\n")
    if not sys.stdin.isatty():
        raise InputError("passphrase: there is no terminal to ask for it; give a file with --passphrase-file")
    from getpass import getpass

    typed = getpass("passphrase: ")
    if twice and getpass("once more: ") != typed:
        raise InputError("passphrase: the two are not the same")
    return typed


def import_memo(arguments: argparse.Namespace) -> None:
    from minimemo.scale.archive import unpack
    from minimemo.scale.sealed import is_sealed

    archive = Path(arguments.archive)
    if "://" in arguments.archive:
        from minimemo.scale.objects import download

        made = download(arguments.archive, Path(arguments.out or archive.name))
    else:
        name = archive.stem if archive.stem.endswith(".memo") else f"{archive.stem}.memo"
        passphrase = _passphrase(arguments.passphrase_file) if is_sealed(archive) else None
        made = unpack(archive, Path(arguments.out or archive.with_name(name)), passphrase)
    print(plain(f'{made}: every checksum is right; minimemo ask {made} "your question"'))


def listing(arguments: argparse.Namespace) -> None:
    from minimemo.memo.registry import disk_usage, listed

    memos = [{"path": memo.path, "bytes": memo.bytes} for memo in listed()]
    shown = {"models": [] if arguments.du else _known_models(), "memos": memos}
    usage = {"usage": disk_usage()} if arguments.du else {}
    if arguments.json:
        print(as_json({**shown, **usage}))
        return
    print_listing(shown["models"], memos)
    if arguments.du:
        print_usage(usage["usage"])


def _known_models() -> list[dict[str, Any]]:
    """The models that `pull` knows by name, and whatever else was pulled; JSON-able."""
    from minimemo.hub.catalog import CATALOG, defaults, pulled

    here = {model.name: model for model in pulled()}
    return [
        {
            "name": name,
            "kind": CATALOG[name].kind if name in CATALOG else "hub",
            "pulled": name in here,
            "default": name in defaults(),
            "bytes": here[name].bytes if name in here else CATALOG[name].size,
            "about": f"{CATALOG[name].licence}; {CATALOG[name].notes}" if name in CATALOG else "",
            "path": str(here[name].path) if name in here else None,
        }
        for name in [*CATALOG, *(name for name in here if name not in CATALOG)]
    ]


def remove(arguments: argparse.Namespace) -> None:
    from minimemo.memo.library import remove

    for memo in arguments.memo:
        if "://" in memo:
            from minimemo.scale.objects import delete

            freed = delete(memo)
        else:
            freed = remove(Path(memo))
        print(plain(f"{memo}: deleted, {size(freed)} free"))


def _served(arguments: argparse.Namespace, folders: Sequence[str], on_event: Listener) -> Any:
    """The folders' memos behind a server of this user's; None where there is none, or where it runs otherwise than the
    command line says."""
    given = ("model", "embedder", "dtype", "kv_dtype", "threads", "generator", "generator_model", "prompts")
    usual = arguments.device == "auto" and not any(getattr(arguments, name) for name in given)
    if not folders or arguments.max_tokens > 4096 or not usual or any("://" in folder for folder in folders):
        return None
    from minimemo.server.client import ServedMemos, running

    if (address := running()) is None:
        return None
    if arguments.verbose:
        print(plain(f"minimemo: the server at {address} answers"), file=sys.stderr)
    return ServedMemos(address, folders, on_event)


def _open(arguments: argparse.Namespace, folders: Sequence[str], on_event: Listener) -> Any:
    """A Memo of the folders, or a server that has them; of none, the Store."""
    if served := _served(arguments, folders, on_event):
        return served
    from minimemo.ask.endpoint import Endpoint, is_address
    from minimemo.memo.library import open_store
    from minimemo.memo.memo import open_memos
    from minimemo.readers import read_document

    generator = arguments.generator
    if is_address(generator):
        key = read_document(arguments.api_key_file).text.strip() if arguments.api_key_file else ""
        model = arguments.generator_model or ""
        generator = Endpoint(generator, model, key=key, plain_http=arguments.plain_http)
    elif generator and re.fullmatch(r"[\w.-]+:\d+(/.*)?", generator):
        raise InputError(f"--generator {generator}: begin an address with http:// or https://")
    elif arguments.generator_model:
        mend = "begin its address with http://" if generator else "give its address with --generator"
        raise InputError(f"--generator-model names a model of an endpoint: {mend}")
    run = {**_run(arguments, on_event), "generator": generator}
    if any("://" in folder for folder in folders):
        from minimemo.scale.objects import open_places

        return open_places(folders, **run)
    if folders:
        return open_memos(folders, **run)
    if arguments.within is None:
        return open_store(**run)
    from minimemo.scale.sync import load

    return open_store(**run, among=load(arguments.within).memos(arguments.name))


def _options(arguments: argparse.Namespace) -> RunOptions:
    """How models run, as the command line says."""
    return RunOptions(arguments.dtype, arguments.kv_dtype, arguments.threads, arguments.device)


def _device(arguments: argparse.Namespace) -> dict[str, str] | None:
    """What JSON tells of the device of a run; None where there is none."""
    return _options(arguments).place().facts() if arguments.json else None


def _run(arguments: argparse.Namespace, on_event: Listener) -> dict[str, Any]:
    """What every command that runs models passes on."""
    from minimemo.ask import PROMPTS, load_prompts

    return {
        "model": arguments.model,
        "embedder": arguments.embedder,
        "prompts": load_prompts(arguments.prompts) if arguments.prompts else PROMPTS,
        "options": _options(arguments),
        "on_event": on_event,
    }
