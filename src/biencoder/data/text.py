"""When two texts count as the same."""

import xxhash


def text_hash(text: str) -> int:
    """The 64 bits that stand for a text."""
    return xxhash.xxh3_64_intdigest(text.encode())


def fold(text: str) -> str:
    """The text without differences in white space and case: what is compared where two texts count as the same."""
    return " ".join(text.split()).casefold()
