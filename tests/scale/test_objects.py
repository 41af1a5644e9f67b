"""Memos in an object store: a folder on this disk, and S3 as moto plays it on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import minimemo
from minimemo.cli.arguments import main
from minimemo.errors import InputError, MemoError, MinimemoError
from minimemo.files import data_dir
from minimemo.memo.memo import Memo
from minimemo.memory.view import chosen
from minimemo.scale import ranges
from minimemo.scale.objects import delete, download, open_places, place_of, upload
from tests.conftest import TinyModels

obstore = pytest.importorskip("obstore", reason="object stores are the extra `cloud`")
TEXT = "\n\n".join(f"In room {i} the user number {i} said Hello world, be brief. 你好{i}。" for i in range(140))


@pytest.fixture(scope="module")
def memo(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of many blocks."""
    out = tmp_path_factory.mktemp("objects") / "rooms.memo"
    return minimemo.build(minimemo.Document.of(TEXT, "rooms.txt"), out, **tiny_models.both).folder


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of moto's on loopback."""
    server = pytest.importorskip("moto.server", reason="moto[server], of the extra `test`, plays S3")
    boto = pytest.importorskip("boto3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        client = boto.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="memos")
        yield "s3://memos"
    running.stop()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in a store of each kind."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def nothing_kept_here() -> None:
    ranges.forget(ranges.objects_dir())


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What came out of stores: bytes and requests."""
    count = SimpleNamespace(bytes=0, requests=0, keys=[])
    get, get_range = obstore.get, obstore.get_range

    def counted(store: Any, path: str, **given: Any) -> Any:
        count.requests += 1
        count.keys.append(path)
        result = get(store, path, **given)
        count.bytes += result.meta["size"]
        return result

    def counted_range(store: Any, path: str, *, start: int, end: int) -> Any:
        count.requests += 1
        count.bytes += end - start
        count.keys.append(path)
        return get_range(store, path, start=start, end=end)

    monkeypatch.setattr(obstore, "get", counted)
    monkeypatch.setattr(obstore, "get_range", counted_range)
    return count


def opened(address: str, tiny_models: TinyModels) -> Memo:
    return open_places([address], **tiny_models.both)


def test_a_memo_is_put_asked_copied_and_deleted(
    memo: Path, store: str, tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{store}/rooms.memo"
    assert main(["export", str(memo), store]) == 0 and main(["export", str(memo), f"{store}/"]) == 0
    assert address in capsys.readouterr().out
    answers = []
    for place in (str(memo), address):
        assert main(["ask", place, "What did user 30 say?", "--max-tokens", "4", *tiny_models.options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert main(["inspect", address]) == 0 and "rooms.txt" in capsys.readouterr().out
    back = tmp_path / "back.memo"
    assert main(["import", address, str(back)]) == 0
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in memo.iterdir()}
    assert main(["rm", address]) == 0
    assert main(["ask", address, "What?", *tiny_models.options]) == 1 and "no such object" in capsys.readouterr().err
    assert main(["rm", address]) == 1


def test_a_reader_takes_the_blocks_of_its_view_and_takes_them_once(
    memo: Path, store: str, tiny_models: TinyModels, came: SimpleNamespace
) -> None:
    address = upload(memo, store)
    with minimemo.open(memo, **tiny_models.both) as here, here.reader() as reader:
        blocks, extents = len(reader), (reader.extent,)
        view = chosen(extents, [(0, 5), (0, 6), (0, 20)], 4 * 256)
        expected = here.memory().load(view, 8)
        needed = sum(reader.block(part.block).length for part in view.parts)
    assert blocks > 20
    came.bytes = came.requests = 0
    with opened(address, tiny_models) as there:
        small = came.bytes
        memory = there.memory()
        came.bytes = came.requests = 0
        cache = memory.load(view, 8)
        for one, other in ((cache.keys, expected.keys), (cache.values, expected.values)):
            assert (one[:, :, : view.tokens] == other[:, :, : view.tokens]).all()
        assert needed <= came.bytes <= needed + 2 * ranges.JOINED and came.requests <= len(view.parts)
    assert small < sum(path.stat().st_size for path in memo.iterdir()) - (memo / "memory.bin").stat().st_size + 1
    came.bytes = came.requests = 0
    with opened(address, tiny_models) as there:
        there.memory().load(view, 8)
    assert came.bytes == 0 and came.requests == 1  # whether the manifest is that still


def test_neighbours_come_in_one_request() -> None:
    near = ranges.JOINED
    assert ranges.joined([(0, 10), (10, 20), (20 + near, 30 + near)]) == [(0, 30 + near)]
    assert ranges.joined([(0, 10), (11 + near, 20 + near)]) == [(0, 10), (11 + near, 20 + near)]


def test_of_two_writers_one_wins_whole(memo: Path, store: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    models = tiny_models.both
    other = minimemo.build(minimemo.Document.of(TEXT[:9000], "rooms.txt"), tmp_path / "rooms.memo", **models).folder
    address, failed, barrier = f"{store}/rooms.memo", [], threading.Barrier(2)

    def put(source: Path) -> None:
        barrier.wait()
        try:
            upload(source, store)
        except InputError as error:
            failed.append((source, str(error)))

    writers = [threading.Thread(target=put, args=(source,)) for source in (memo, other)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ((lost, said),) = failed
    won = other if lost == memo else memo
    assert "another memo is there" in said
    back = download(address, tmp_path / "back.memo")
    assert {p.name: p.read_bytes() for p in back.iterdir()} == {p.name: p.read_bytes() for p in won.iterdir()}
    place = place_of(address)
    assert len(obstore.list(place.base, "rooms.memo").collect()) == len([*won.iterdir()])  # nothing of the other


def _changed(store: str, key: str, change: Callable[[bytes], bytes]) -> str:
    """Writes over the object of a memo's file; its address."""
    place = place_of(f"{store}/rooms.memo")
    path = next(one["path"] for one in obstore.list(place.base, "rooms.memo").collect() if one["path"].endswith(key))
    content = bytes(obstore.get(place.base, path).bytes())
    obstore.put(place.base, path, change(content))
    return f"{store}/{path}"


@pytest.mark.parametrize("key", ["manifest.json", "memory.bin", "index.bin", "chunks.json"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_damage_names_the_object(memo: Path, tiny_models: TinyModels, tmp_path: Path, key: str, how: str) -> None:
    store = f"file://{tmp_path}/store"
    address = upload(memo, store)

    def flipped(content: bytes) -> bytes:
        return b"".join(
            bytes([content[at] ^ 1]) if at % 997 == 500 else content[at : at + 1] for at in range(len(content))
        )

    named = _changed(store, key, flipped if how == "flipped" else lambda content: content[: len(content) // 2])
    if how == "gone":
        Path(named.removeprefix("file://")).unlink()
    for _ in range(2):  # nothing damaged is kept here
        with pytest.raises(MemoError) as told, opened(address, tiny_models) as there:
            memory = there.memory()
            for block in range(memory.extents[0].blocks):
                memory.block(0, block)
        assert named in str(told.value)
    with pytest.raises(MemoError) as told:
        download(address, tmp_path / "back.memo")
    assert named in str(told.value) and not list(tmp_path.glob("*back*"))


def test_copies_here_heal_and_have_a_bound(
    memo: Path, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = upload(memo, f"file://{tmp_path}/store")

    def load() -> bytes:
        with opened(address, tiny_models) as there:
            memory = there.memory()
            return b"".join(memory.block(0, n)[0].numpy().tobytes() for n in range(8))

    def parts() -> list[Path]:
        return sorted(path for path in ranges.objects_dir().rglob("*-*") if path.is_file())

    expected = load()
    assert len(parts()) >= 8 and all(path.stat().st_mode & 0o077 == 0 for path in parts())
    for path in ranges.objects_dir().rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    assert load() == expected
    most = sum(path.stat().st_size for path in parts()) // 2
    small = sum(path.stat().st_size for path in ranges.objects_dir().rglob("*.*"))
    monkeypatch.setattr(ranges, "KEPT_BYTES", small + most)
    ranges.forget(ranges.objects_dir())
    assert load() == expected
    assert most // 4 < sum(path.stat().st_size for path in parts()) <= most * 1.2


def test_deletion_leaves_nothing_of_it_here(memo: Path, store: str, tiny_models: TinyModels) -> None:
    address = upload(memo, store)
    with opened(address, tiny_models) as there:
        there.memory().block(0, 5)

    def found() -> int:
        traces = (TEXT[30:60].encode(), (memo / "index.bin").read_bytes()[100:140])
        files = [path.read_bytes() for path in data_dir().rglob("*") if path.is_file()]
        return sum(trace in content for trace in traces for content in files)

    assert found() >= 2
    assert delete(address) > 1000
    assert found() == 0 and not [*ranges.objects_dir().iterdir()]


def test_what_is_deleted_elsewhere_is_dropped_here(memo: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    address = upload(memo, f"file://{tmp_path}/store")
    opened(address, tiny_models).memory()
    (tmp_path / "store/rooms.memo/manifest.json").unlink()
    with pytest.raises(MemoError, match="no such object"):
        opened(address, tiny_models)
    assert not [*ranges.objects_dir().iterdir()]


def test_other_things_are_not_deleted_and_addresses_are_checked(memo: Path, tmp_path: Path) -> None:
    address = upload(memo, f"file://{tmp_path}/store")
    (tmp_path / "store/rooms.memo/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        delete(address)
    for wrong in ("s3://bucket", "http://bucket/x.memo", "s3:///x.memo", "file:///tmp/notes"):
        with pytest.raises(MinimemoError):
            open_places([wrong])


def test_a_store_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from minimemo.scale import objects

    monkeypatch.setattr(objects, "_PATIENCE", objects.timedelta(seconds=0.1))
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(MinimemoError, match=r"s3://memos/a\.memo/manifest\.json: cannot be reached") as told:
        open_places(["s3://memos/a.memo"])
    assert "secret" not in str(told.value) and "\n" not in str(told.value)
