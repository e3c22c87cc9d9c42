"""Texts that callers and objects hand in and that reach the disk: what they may be.

Promises
    A text that passed can be written as UTF-8, and is no longer than its bound.
"""

from __future__ import annotations

from collections.abc import Mapping

ATTRIBUTES_MAX = 16
ATTRIBUTE_CHARACTERS_MAX = 256
REQUEST_ID_CHARACTERS_MAX = 256  # four UUIDs and some words


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Check what an object is about to publish in the directory.

    Raises:
        ValueError: Too many, too long, no text, or no Unicode.
    """
    if len(attributes) > ATTRIBUTES_MAX:
        message = f"at most {ATTRIBUTES_MAX} attributes, got {len(attributes)}"
        raise ValueError(message)
    for key, value in attributes.items():
        given: tuple[object, ...] = (key, value)
        for text in given:
            if (
                not isinstance(text, str)
                or len(text) > ATTRIBUTE_CHARACTERS_MAX
                or not is_unicode(text)
            ):
                message = (
                    f"attribute {key!a}: key and value must be text of at most"
                    f" {ATTRIBUTE_CHARACTERS_MAX} characters"
                )
                raise ValueError(message)


def check_request_id(request_id: str) -> str:
    """Return the identity of a call, if it can be one.

    Raises:
        ValueError: Empty, too long, or no Unicode.
    """
    if not 0 < len(request_id) <= REQUEST_ID_CHARACTERS_MAX or not is_unicode(
        request_id
    ):
        message = (
            f"request_id must be text of 1 to {REQUEST_ID_CHARACTERS_MAX} characters,"
            f" got {request_id!a:.60}"
        )
        raise ValueError(message)
    return request_id


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
