"""What ends a run, in words for its user; without Lightning, which takes seconds to load."""

from nrf.system.text import printable


class TrainingError(RuntimeError):
    """Training cannot continue; its message is for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointError(TrainingError):
    """A checkpoint that cannot be used; the message names it and what was expected."""
