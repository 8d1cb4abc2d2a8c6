"""The one exception that people see as a line instead of a traceback."""


class RequestError(ValueError):
    """The request was wrong: the message says what, and what to do instead. The command line exits with 2."""
