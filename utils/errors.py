"""The two ways in which a command ends early on purpose."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line that names the cause and the fix; exit status 2."""


class SharedUserError(UserError):
    """A user error that every process has; only the first one says it."""


class Interrupted(Exception):
    """A signal asked the command to stop, and its state has been saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """128 + signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self.signum
