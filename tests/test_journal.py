"""A table that grows by its changes: what readers see of it, whatever happened to its writers and its bytes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimemo.journal import LINE, Journal, append


def test_readers_take_in_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "some" / "table"
    one, two = Journal(path), Journal(path)
    assert one.write({"a": 1, "b": [2, "\udcff é"]}) == {"a": 1, "b": [2, "\udcff é"]}
    assert two.read() == one.values and two.read() == {}
    append(path, {"a": None, "c": 3})
    assert one.read() == {"a": None, "c": 3} and one.values == {"b": [2, "\udcff é"], "c": 3}
    assert two.write({"d": 4}) == {"a": None, "c": 3, "d": 4}
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


def test_one_change_costs_the_same_in_a_large_table_and_spent_ones_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minimemo.journal.SPARE", 50)
    path = tmp_path / "table"
    one, two = Journal(path), Journal(path)
    one.write({str(number): number for number in range(1000)})
    size = path.stat().st_size
    append(path, {"x": 1})
    assert path.stat().st_size - size == 17
    two.read()
    for number in range(1060):
        one.write({"x": number})
    assert path.stat().st_size < 1.2 * size + 1060 * 20 and len(one.values) == 1001
    told = two.read()
    assert two.values == one.values and told["x"] == 1059
    one.write(dict.fromkeys(map(str, range(1000))))
    assert path.stat().st_size < 200
    assert two.read().keys() >= {str(number) for number in range(1000)} and two.values == {"x": 1059}


def test_a_torn_line_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    path = tmp_path / "table"
    Journal(path).write({"a": 1})
    whole = path.read_bytes()
    append(path, {"b": 2})
    longer = path.read_bytes()
    for end in range(len(whole), len(longer)):
        path.write_bytes(longer[:end])
        journal = Journal(path)
        assert journal.values == {"a": 1} and not journal.damaged
        journal.write({"c": 3})
        assert Journal(path).values == {"a": 1, "c": 3} == journal.values


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_moment_in_which_it_cannot_be_read_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A process that is out of descriptors once wrote the list of all memos anew, without one of them."""
    path = tmp_path / "table"
    journal = Journal(path)
    journal.write({"a": 1, "b": 2})
    opened, fails = os.open, False

    def short_of(file: str | Path, flags: int, *more: int, **named: int) -> int:
        if fails and str(file) == str(path) and not flags & os.O_RDWR:
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, flags, *more, **named)

    monkeypatch.setattr(os, "open", short_of)
    fails = True
    assert journal.read() == {} and journal.values == {"a": 1, "b": 2}
    with pytest.raises(OSError, match=os.strerror(number)):
        journal.write({"b": None}, sweep=True)
    fails = False
    journal.read()
    assert Journal(path).values == {"a": 1} == journal.values
    path.unlink()
    assert journal.read() == {"a": None} and not journal.values


def test_every_bit_counts_and_damage_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "table"
    values = {str(number): number for number in range(3 * LINE)}
    Journal(path).write(values)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        journal = Journal(path)
        assert journal.values.items() <= values.items()
        if at >= 34:
            lost = len(values) - len(journal.values)
            assert (journal.damaged and lost in (LINE, 2 * LINE)) or lost == LINE
    journal.write({"x": 1})
    assert not Journal(path).damaged and Journal(path).values == journal.values
    for other in (b"", b"MMS2 another", bytes(400)):
        path.write_bytes(other)
        assert Journal(path).values == {}
        append(path, {"a": 1})
        assert Journal(path).values == {"a": 1}


def test_processes_that_write_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "table"
    code = (
        "import sys; from pathlib import Path; from minimemo.journal import Journal, append\n"
        "path, me = Path(sys.argv[1]), sys.argv[2]\n"
        "journal = Journal(path)\n"
        "for n in range(150): (append(path, {f'{me}-{n}': n}) if n % 2 else journal.write({f'{me}-{n}': n, 'x': me}))\n"
    )
    many = [subprocess.Popen([sys.executable, "-c", code, str(path), str(number)]) for number in range(3)]
    assert [one.wait(60) for one in many] == [0] * 3
    values = Journal(path).values
    assert values.pop("x") in ("0", "1", "2") and len(values) == 450


def test_one_that_cannot_be_read_or_written_is_empty(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert Journal(tmp_path / "folder").values == {}
    path = tmp_path / "table"
    path.write_text(json.dumps({"a": 1}))
    assert Journal(path).values == {} and Journal(path).damaged


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_table_and_gives_way(what: str, tmp_path: Path) -> None:
    """Reading a pipe, or /dev/zero, never ended."""
    path = tmp_path / "table"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert Journal(path).values == {}
    if what != "folder":
        append(path, {"a": 1})
        assert Journal(path).values == {"a": 1}
