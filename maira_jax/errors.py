"""The one exception for input that a user can mend."""


class UserError(Exception):
    """Bad input. Its text is one sentence that names the file or field and the mend."""
