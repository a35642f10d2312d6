"""Sentences that name files, for the user, and without these names, which may be a patient's, for reports."""

from __future__ import annotations

from typing import Any

# What stands for the name of a file, or of either input, in a report.
_STAND_INS = {"a": "A", "b": "B", "file": "one file", "other": "another"}


class Message(str):
    """A sentence for the user, which reports repeat as `anonymous` has it.

    Args:
        template: the sentence as for `str.format`. Paths are not part of it, but given by name.
        values: what to put in. `a`, `b`, `file` and `other` are names of files; all else is the same in reports.

    Attributes:
        anonymous: the sentence without the names of files.
    """

    anonymous: str

    def __new__(cls, template: str, **values: Any) -> Message:
        message = super().__new__(cls, template.format(**values))
        message.anonymous = template.format(**values | {name: _STAND_INS[name] for name in values.keys() & _STAND_INS})
        return message


def anonymous(text: str) -> str:
    """A text as reports repeat it."""
    return text.anonymous if isinstance(text, Message) else text
