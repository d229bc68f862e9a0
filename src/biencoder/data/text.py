"""What biencoder asks about texts: whether two are the same, and whether a text has anything to read."""

import re

import xxhash

# White space, controls, and characters that take no room or only direct what follows.
_VISIBLE = re.compile("[^\\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")


def text_hash(text: str) -> int:
    """The 64 bits that stand for a text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def fold(text: str) -> str:
    """The text without differences in white space and case: what is compared where two texts count as the same."""
    return " ".join(text.split()).casefold()


def is_blank(text: str) -> bool:
    """Whether a text has no visible character. A tokenizer makes nothing of such a text, or nonsense."""
    return _VISIBLE.search(text) is None
