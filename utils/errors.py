"""The ways in which a command ends early on purpose."""

import signal


class UserError(ValueError):
    """Bad input. The message is one line that names the cause and the fix; exit status 2."""


class SharedUserError(UserError):
    """A user error that every rank has; rank 0 alone prints it."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the command; what is on the disk is intact.

    A KeyboardInterrupt, so that no `except Exception` on the way takes it for an error.
    """

    def __init__(self, signum: int, said: bool = False) -> None:  # said: the user has been told
        super().__init__(signum, said)
        self.signum, self.said = signum, said
        self.state = ""  # of the work

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.state}"

    @property
    def exit_status(self) -> int:
        """128 + signal: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self.signum
