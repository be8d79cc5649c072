"""What goes wrong before work starts: one line that names the option, its value and the remedy."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """An option, a file or a combination of options that cannot run."""


class DataError(ConfigError):
    """A data root, a class folder or an image that cannot be used."""


class ImageError(DataError):
    """An image that cannot be read: met by one process alone, in the middle of its work."""


class CheckpointError(ConfigError):
    """A checkpoint that is torn, foreign, or does not fit the run."""


@contextmanager
def about(option: str, value: str) -> Iterator[None]:
    """Put in front of a ConfigError which option it is about, and its value."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{option}={value}: {error}") from error


def reported(work: Callable[[], int]) -> int:
    """The exit code of `work`; for a ConfigError 2, and its one line on stderr.

    Under torchrun every process finds the same fault in the options, so the first one of a machine speaks for all.
    """
    try:
        return work()
    except ConfigError as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0 or isinstance(error, ImageError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
