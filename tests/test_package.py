"""The package as its users get it: a whole sdist; one wheel a platform, installed elsewhere, asked and type-checked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import TinyModels

pytestmark = pytest.mark.package
ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.so", "*.egg-info", "build", "dist")
CXX = shutil.which(os.environ.get("CXX", "c++"))
DATA = (
    "minimemo/py.typed", "minimemo/hub/catalog.toml", "minimemo/ask/prompts/en.toml", "minimemo/ask/prompts/zh.toml",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "minimemo/memo/calibration_text").glob("*.txt")),
)  # fmt: skip
_COMPILER = """#!/bin/sh
case " $* " in *" -c "*) exec {CXX} "$@" -E ;; esac
for word; do
    test "$before" = -o && exec cp "{built}" "$word"
    before=$word
done
exit 1
"""
PROGRAM = """
import sys
import minimemo

built: minimemo.Memo = minimemo.build("book.txt", "book.memo", model=sys.argv[1], embedder=sys.argv[2])
memo = minimemo.open("book.memo")
answer: minimemo.Answer = memo.ask("What did user 3 say?", max_tokens=4)
passage: minimemo.Passage = answer.passages[0]
print(passage.text[: passage.end - passage.start], answer.text)
pieces = [part.text for part in memo.stream("What did user 4 say?", "rag", 4) if isinstance(part, minimemo.Piece)]
print("".join(pieces), minimemo.__file__)
"""


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        command, cwd=folder, env=outside | (environment or {}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def _wheel(source: Path, to: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """The wheel of a source folder, and what pip said."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", str(to), "."]
    said = _run(command, source, environment)
    (wheel,) = to.glob("*.whl")
    return wheel, said


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked. It is made from a copy, since a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_OUT)
    (folder / "checkout/examples/lighthouse.memo").mkdir(exist_ok=True)
    (folder / "checkout/examples/lighthouse.memo/memory.bin").write_bytes(b"built by `make demo`")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    _run([sys.executable, "-c", build, str(folder)], folder / "checkout")
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources are preprocessed alone, so that a missing one or a missing header fails; in the linked library's place
    comes the checkout's, which `make install` compiled from the same sources. Where it has none, all is compiled,
    without optimization."""
    folder = tmp_path_factory.mktemp("wheel")
    quick = folder / "c++"
    built = next((ROOT / "kernels").glob("_native*.so"), None)
    quick.write_text(_COMPILER.format(CXX=CXX, built=built) if built else f'#!/bin/sh\nexec {CXX} "$@" -O0\n')
    quick.chmod(0o755)
    return _wheel(source, folder / "made", {"CXX": str(quick)})[0]


@pytest.fixture(scope="module")
def user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the checkout: an environment with the wheel, which sees the packages of this one, and a book."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder / "env", symlinks=True)
    (site,) = folder.glob("env/lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared))
    install = ["install", "--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    _run([sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), *install], folder)
    (folder / "book.txt").write_text("\n\n".join(f"The user number {i} said Hello world, be brief." for i in range(12)))
    (folder / "program.py").write_text(PROGRAM)
    return folder


def test_the_sdist_is_whole(source: Path) -> None:
    """What a checkout has under version control, but for hidden files; nothing that was built."""
    for folder in ("bench", "docs", "examples", "kernels", "minimemo", "tests", "tools"):
        for path in (ROOT / folder).rglob("*"):
            built = {"__pycache__", "lighthouse.memo"} & set(path.parts) or path.suffix in (".so", ".pyc")
            if path.is_file() and not built:
                assert (source / path.relative_to(ROOT)).is_file(), path
    for name in ("Makefile", "LICENSE", "MANIFEST.in", "README.md", "constraints-cpu.txt", "pyproject.toml"):
        assert (source / name).is_file(), name
    assert not list(source.rglob("*.so")) and not (source / "examples/lighthouse.memo").exists()


def test_one_wheel_a_platform_holds_everything(wheel: Path) -> None:
    assert "-cp311-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "minimemo").rglob("*.py")}
    modules |= {f"minimemo/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").rglob("*.py")}
    assert not {*modules, *DATA} - names
    assert {name for name in names if name.endswith(".py")} == modules


@pytest.mark.skipif(CXX is None, reason="no C++ compiler here")
def test_the_library_holds_no_symbol_of_python(wheel: Path) -> None:
    """ctypes loads it, so that one build serves every version of Python."""
    (library,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so"))
    assert library.endswith("_native.abi3.so")
    content = zipfile.ZipFile(wheel).read(library)
    assert b"\0minimemo_abi\0" in content
    assert not re.search(rb"\0_?Py[A-Z]\w{3,}\0", content)


def test_without_a_compiler_there_is_a_warning_and_a_wheel(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source", ignore=LEFT_OUT)
    wheel, said = _wheel(tmp_path / "source", tmp_path / "made", {"CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"})
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert said.count('building extension "minimemo.kernels._native" failed') == 1


def test_builds_and_answers_outside_the_checkout(user: Path, tiny_models: TinyModels) -> None:
    python, models = str(user / "env/bin/python"), [str(tiny_models.decoder), str(tiny_models.embedder)]
    shown = _run([python, "program.py", *models], user, {"OMP_NUM_THREADS": "1"})
    assert "The user number" in shown and str(user / "env") in shown
    ask = [str(user / "env/bin/minimemo"), "ask", "book.memo", "What did user 3 say?", "--json", "--max-tokens", "4"]
    assert json.loads(_run(ask, user, {"OMP_NUM_THREADS": "1"}))["passages"]


def test_a_users_program_type_checks(user: Path) -> None:
    """Strictly, against the installed package; a name that minimemo does not have is an error."""
    pytest.importorskip("mypy")
    (user / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n")
    (user / "wrong.py").write_text("import minimemo\n\nminimemo.nope\n")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(user / "env/bin/python"), "program.py", "wrong.py"]
    found = subprocess.run(mypy, cwd=user, capture_output=True, text=True, check=False).stdout
    assert found.startswith("wrong.py:3: ") and '"nope"' in found and "Found 1 error in 1 file" in found


def test_the_oldest_versions_allowed_are_told() -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / "tools/lowest.py"), "server", "test"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert "uvicorn==0.41" in told and len({line.split("==")[0] for line in told}) == len(told)
    assert all("==" in line for line in told[:-1])
