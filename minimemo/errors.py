"""Errors a user can mend. Each message names the offending file or argument and says what to do about it.

An error of no kind below is of the machine or the moment: a full disk, too little memory, a memo that is being built.
"""


class MinimemoError(Exception):
    """Base of every expected failure; the command line prints it as one line and exits with 1, or 2 for InputError."""


class InputError(MinimemoError):
    """A document, question or argument that cannot be used as it was given: the same call fails again."""


class ModelError(MinimemoError):
    """Weights, a configuration or a tokenizer that cannot be used."""


class MemoError(MinimemoError):
    """A memo that is damaged, of another version, or of another model."""


class FetchError(MinimemoError):
    """A download that failed or did not match its checksum."""


class GeneratorError(MinimemoError):
    """An endpoint that did not write an answer."""
