"""SIGTERM and Ctrl-C as a flag that a loop reads at its step edges, so that it can save and leave."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self


class Interruption:
    """with Interruption() as interrupted: false until a SIGTERM or SIGINT comes, true from then on.

    A second Ctrl-C ends at once: after the first, SIGINT does what it did before (KeyboardInterrupt). More SIGTERMs
    change nothing, since launchers send them after a Ctrl-C of their own. A signal that the program was started to
    ignore (nohup, a shell's background job) stays ignored. Handlers come back on leaving. In the main thread only,
    where Python has its handlers.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self._came is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects: 143 after SIGTERM, 130 after Ctrl-C, whichever was first; 0 if none came."""
        return 0 if self._came is None else 128 + self._came

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # None: a handler from outside Python, which could not come back
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or number
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, self._before.pop(number))  # type: ignore[arg-type]
            again = "; once more to end at once"
        # not print: the signal may have come inside one
        os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this step{again}\n".encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
