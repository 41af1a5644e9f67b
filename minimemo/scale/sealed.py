"""A file under a passphrase: frames of AES-256-GCM, with a key that scrypt makes of the passphrase.

    header   magic "MMSEALED" | u8 version | u8 log2 of scrypt's N | u32 r | u32 p | 16 B salt
    frames   FRAME bytes each but the last, every one of them followed by its tag of 16 B

The nonce of a frame is its number (11 B) and a byte that is 1 in the last one; the header is authenticated with every
frame. So a frame that is changed, missing, repeated or at another place fails, and so does a file that was cut off
(STREAM: Hoang, Reyhanitabar, Rogaway, Vizar 2015). The salt is new for each file, so no key meets a nonce twice.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING

from minimemo.errors import InputError, MemoError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC, VERSION = b"MMSEALED", 1
FRAME = 1 << 20  # bytes
_HEADER = struct.Struct("<8sBBII16s")
_TAG = 16
_LOG_N, _R, _P = 17, 8, 1  # 128 MB and about 0.3 s a try, as OWASP advises
_MOST_LOG_N = 20  # of a stranger's file: 1 GB


def is_sealed(path: Path) -> bool:
    """Whether a file begins as sealed ones do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class Sealer:
    """Writes into `out` what it is given, sealed; `close` writes the end, without which nothing can be opened."""

    def __init__(self, out: IO[bytes], passphrase: str) -> None:
        """Raises InputError for an empty passphrase, and where the package cryptography is missing."""
        self._header = _HEADER.pack(MAGIC, VERSION, _LOG_N, _R, _P, os.urandom(16))
        self._cipher = _cipher(self._header, passphrase)
        self._out, self._number, self._waiting = out, 0, bytearray()
        out.write(self._header)

    def write(self, content: bytes) -> int:
        self._waiting += content
        while len(self._waiting) > FRAME:  # the last frame is told apart, so one always waits
            self._frame(self._waiting[:FRAME], last=False)
            del self._waiting[:FRAME]
        return len(content)

    def flush(self) -> None:
        """A frame is written when it is full."""

    def close(self) -> None:
        self._frame(self._waiting, last=True)

    def _frame(self, content: bytes | bytearray, last: bool) -> None:
        self._out.write(self._cipher.encrypt(_nonce(self._number, last), bytes(content), self._header))
        self._number += 1


def unseal(path: Path, passphrase: str, out: IO[bytes]) -> None:
    """Writes what a sealed file holds into `out`, of which nothing is to be used after an error.

    Raises InputError for a wrong passphrase, which cannot be told from a changed first frame; MemoError for a file that
    was changed or cut off, or is of another version.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
            raise MemoError(f"{path}: damaged, or no sealed memo; export it again")
        _, version, log_n, r, p, _ = _HEADER.unpack(header)
        if version != VERSION or not (10 <= log_n <= _MOST_LOG_N and (r, p) == (_R, _P)):
            raise MemoError(f"{path}: sealed in a way that this minimemo does not open; export it again")
        cipher, number = _cipher(header, passphrase), 0
        frame = file.read(FRAME + _TAG)
        while True:
            following = file.read(FRAME + _TAG)
            out.write(_opened(cipher, frame, _nonce(number, not following), header, path))
            if not following:
                return
            frame, number = following, number + 1


def _opened(cipher: AESGCM, frame: bytes, nonce: bytes, header: bytes, path: Path) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(nonce, frame, header)
    except (InvalidTag, ValueError):
        if int.from_bytes(nonce[:11], "big"):
            raise MemoError(f"{path}: damaged (it was changed or cut off); export it again") from None
        raise InputError(f"{path}: the passphrase is another one, or the file was changed") from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(header: bytes, passphrase: str) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError as error:
        raise InputError(f"a passphrase needs cryptography: pip install 'minimemo[seal]' ({error})") from error
    if not passphrase:
        raise InputError("passphrase: is empty; choose one of several words")
    _, _, log_n, r, p, salt = _HEADER.unpack(header)
    return AESGCM(Scrypt(salt, 32, 1 << log_n, r, p).derive(passphrase.encode()))
