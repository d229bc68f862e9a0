"""Texts in which there is nothing to read."""

import re

# White space, controls, and characters that take no room or only direct what follows.
_VISIBLE = re.compile("[^\\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")


def is_blank(text: str) -> bool:
    """Whether a text holds no character that can be seen: a tokenizer makes nothing of it, or nonsense."""
    return _VISIBLE.search(text) is None
