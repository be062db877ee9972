"""The one exception that is a message to the user and not a bug."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong: what, where, and what to do about it, in one message.

    Jobs print it without a traceback and exit with status 1.
    """
