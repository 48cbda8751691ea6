"""The one exception a user is meant to read."""


class SbpError(Exception):
    """Something the user can act on: one sentence saying what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class Stopped(Exception):
    """The run was asked to stop from outside, has saved what it had, and can go on with the same command."""
