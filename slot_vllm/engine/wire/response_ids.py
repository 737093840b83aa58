"""How vLLM's server names in the engine what belongs to one response.

Chat completions: the response's id, with ``_0``, ``_1``, ... where a body has several
conversations. Completions: the id with ``-0``, ``-1``, ..., one per prompt. Responses: the id with
``_0``, ``_1``, ..., one per turn. The several answers to one prompt (``n``) have one name. A beam
search adds a random number and ``-beam-0``, ``-beam-1``, ... in each of its steps.
"""

import re

_BEAM = re.compile(r"-[0-9a-f]{8,}-beam-\d+$")
_OF_SEVERAL = re.compile(r"(cmpl-.+)-(\d+)|(chatcmpl-.+|resp_.+)_(\d+)", re.DOTALL)


def without_beam(request_id: str) -> str:
    """What the request of a beam search had in common with the others of that search."""
    return _BEAM.sub("", request_id)


def response_ids(request_id: str) -> list[str]:
    """What a response may be called that the request is a part of."""
    several = _OF_SEVERAL.fullmatch(request_id)
    return [request_id, several[1] or several[3]] if several else [request_id]


def place(request_id: str) -> int:
    """The number of the request in its response."""
    several = _OF_SEVERAL.fullmatch(request_id)
    return int(several[2] or several[4]) if several else 0
