"""`python tools/attack [--minutes N]`: tries to break minimemo, on tiny models; exits 1 where something fell.

Without --minutes every case of every attack is tried; with it each attack gets an equal share of the time, at least two
cases, and the cases in an order that begins with a spread over all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import archives
import documents
import folders
import kills
import limits
import network
import places
import served
import soak
import strangers
from ground import lay

ATTACKS = {
    "kill -9 before each file operation": kills.sweep,
    "kill -9 at random moments": kills.at_random,
    "planted links and foreign folders": places.planted,
    "pipes and devices in place of files": places.files,
    "rm": places.removal,
    "private documents": places.secrecy,
    "damage under an open memo": places.damage,
    "odd names": places.names,
    "file systems without locks": places.locks,
    "hostile endpoints": network.endpoints,
    "keys and addresses": network.keys,
    "hostile hubs": network.hubs,
    "hostile clients of the server": served.clients,
    "memos of strangers": archives.archives,
    "hostile documents": documents.documents,
    "folders that are synced": folders.folders,
    "hostile tokenizers": strangers.tokenizers,
    "hostile weights": strangers.weights,
    "hostile configurations": strangers.configurations,
    "hostile texts and questions": strangers.texts,
    "little memory and few descriptors": limits.scarce,
    "signals": limits.signals,
    "many questions": soak.soak,
    "questions at once": soak.at_once,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="attack", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, help="for all attacks together (default: as long as it takes)")
    parser.add_argument("--only", default="", metavar="PATTERN", help="attacks whose names match (regular expression)")
    given = parser.parse_args()
    attacks = {name: cases for name, cases in ATTACKS.items() if re.search(given.only, name)}
    fallen = 0
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        ground = lay(Path(folder))
        share = 60 * given.minutes / len(attacks) if given.minutes else float("inf")
        print(f"{'attack':<44}{'cases':>7}{'survived':>10}{'seconds':>9}", flush=True)
        for name, make in attacks.items():
            begin, tried, fell = time.monotonic(), 0, 0
            for case in make(ground):
                if tried >= 2 and time.monotonic() - begin > share:
                    break
                tried += 1
                if wrong := case.run():
                    fell, fallen = fell + 1, fallen + 1
                    print(f"{name}: {case.name}: {wrong}", file=sys.stderr, flush=True)
            print(f"{name:<44}{tried:>7}{tried - fell:>10}{time.monotonic() - begin:>9.1f}", flush=True)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
