"""The exceptions that people see as a line instead of a traceback."""


class RequestError(ValueError):
    """The request was wrong: the message says what, and what to do instead. The command line exits with 2."""


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite. The command line exits with 1."""


class StorageError(OSError):
    """Something could not be written: the disk is full, or the folder is gone. The command line exits with 1."""


class LostWorkerError(RuntimeError):
    """Another of the processes that work together has ended. The command line exits with 1."""


class TerminatedError(BaseException):
    """The process was told to end (SIGTERM). The command line exits with 143."""
