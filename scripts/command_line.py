"""An argument parser that says what is wrong as everything here does: in one line, with exit code 2."""

import argparse
from typing import NoReturn

from dcls.errors import ConfigError


class OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, for `dcls.errors.reported`."""
        raise ConfigError(f"{message}; see --help")
