"""Errors that a user can mend: one line that says what is wrong and what to do.

The command line prints the message and exits with status 2; the library raises the typed exception.
All of them are ``ValueError`` too, so code that catches the usual type keeps working.
"""

from __future__ import annotations


class AscendM1Error(ValueError):
    """Base of every error that names a mistake in what the user gave."""


class ConfigError(AscendM1Error):
    """A field of config.json is missing, has the wrong type, or contradicts another."""


class CheckpointError(AscendM1Error):
    """A weight file is missing, truncated or corrupt, or holds tensors that do not fit the config."""


class TokenizerError(AscendM1Error):
    """Tokenizer files are missing or corrupt, or do not fit the model's vocabulary."""


class InputError(AscendM1Error):
    """A prompt, a batch or an option has a value that cannot be used."""


class CacheError(AscendM1Error):
    """The cache cannot do what was asked (rolled back too far, batch of another size)."""


class DeviceError(AscendM1Error):
    """The device or the dtype is unknown or not available on this machine."""
