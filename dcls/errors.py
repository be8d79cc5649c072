"""What goes wrong before work starts: one line that names the option, its value and the remedy."""


class ConfigError(ValueError):
    """An option, a file or a combination of options that cannot run."""


class DataError(ConfigError):
    """A data root, a class folder or an image that cannot be used."""


class CheckpointError(ConfigError):
    """A checkpoint that is torn, foreign, or does not fit the run."""
