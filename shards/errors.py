"""Errors whose message is for the user: every command prints it as one line and exits with 2."""


class UserError(Exception):
    """Bad config, input or usage. The message names the file, row or key, and the remedy."""


class DatasetError(UserError):
    """A folder is no dataset of ours, or a file of it cannot be read."""
