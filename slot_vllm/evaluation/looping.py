"""Whether an answer goes round in circles."""

MORE_THAN = 60
DISTINCT = 0.25


def loops(text: str) -> bool:
    """Whether a text has over 60 words of which fewer than a quarter are distinct.

    Words are what white space separates.
    """
    words = text.split()
    return len(words) > MORE_THAN and len(set(words)) < DISTINCT * len(words)
