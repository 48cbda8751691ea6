"""The one exception a user is meant to read."""


class SbpError(Exception):
    """Something the user can act on: one sentence saying what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
