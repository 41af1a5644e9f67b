"""`minimemo` and `python -m minimemo`: the command line, with Ctrl-C minded from the first line on."""

import os

try:
    import signal

    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # while there is nothing to undo
    import io
    import sys

    from minimemo.cli import arguments as cli
    from minimemo.cli.interrupt import Interrupt
except KeyboardInterrupt:
    os._exit(130)


def main() -> int:
    """The process's exit code; see `cli.main`."""
    arguments = cli.parser().parse_args()
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding cannot hold is marked: nobody's reason to stop
            stream.reconfigure(errors=errors)
    interrupt = Interrupt()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return cli.run(arguments, interrupted=lambda: interrupt.came)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
