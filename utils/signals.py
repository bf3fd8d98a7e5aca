"""Signals turned into requests that the training loop answers between two minibatches."""

from __future__ import annotations

import signal
import time
from types import FrameType

from utils.errors import Interrupted

STOP_SIGNALS = ("SIGINT", "SIGTERM")
SAVE_SIGNAL = "SIGUSR1"  # what SLURM is asked to send ahead of its time limit
PATIENCE = 1.0  # seconds; a launcher forwards the Ctrl-C that the terminal has sent already


class SignalRequests:
    """Remembers SIGINT and SIGTERM (save and stop) and SIGUSR1 (save and go on).

    A second Ctrl-C stops at once, without saving: the last checkpoint is whole.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self.since = 0.0

    def install(self) -> SignalRequests:
        """Take over the signals that this system has; only in the main thread."""
        for name in (*STOP_SIGNALS, SAVE_SIGNAL):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.handle)
        return self

    def handle(self, signum: int, _: FrameType | None) -> None:
        """Note a signal."""
        if signal.Signals(signum).name == SAVE_SIGNAL:
            self.save = True
            return
        if self.stop and time.monotonic() - self.since > PATIENCE:
            raise Interrupted(signum)
        if not self.stop:
            self.stop, self.since = signum, time.monotonic()
