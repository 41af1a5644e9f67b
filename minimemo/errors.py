"""Errors a user can mend. Each message names the offending file or argument and says what to do about it."""


class MinimemoError(Exception):
    """Base of every expected failure; the command line prints it as one line and exits with 1."""


class InputError(MinimemoError):
    """A document, question or argument that cannot be used."""


class ModelError(MinimemoError):
    """Weights, a configuration or a tokenizer that cannot be used."""


class MemoError(MinimemoError):
    """A memo that is damaged, of another version, or of another model."""


class FetchError(MinimemoError):
    """A download that failed or did not match its checksum."""


class GeneratorError(MinimemoError):
    """An endpoint that did not write an answer."""
