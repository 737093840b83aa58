"""Single tokens as readable text."""

from transformers import PreTrainedTokenizerBase


class TokenText:
    """Names tokens: as text in quotes, as Python writes it, so that spaces and line ends show
    (``' the'``, ``'\\n'``); special tokens and parts of a character by the tokenizer's own name,
    without quotes (``<|end|>``, ``âĢ``); ids that it does not know as ``<unused 151700>``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = {token for token in added if added[token].special}
        # Some tokenizers drop the space in front of the first token: so it never is the first.
        self._before = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._text_before = self._decode(self._before)

    def __call__(self, token: int) -> str:
        try:
            name = self._tokenizer.convert_ids_to_tokens(token)
        except IndexError:  # of tokenizers that are not "fast"; the others give None
            name = None
        if name is None:
            return f"<unused {token}>"
        text = self._decode([*self._before, token])
        whole = "\N{REPLACEMENT CHARACTER}" not in text and text.startswith(self._text_before)
        if token in self._special or not whole:
            return str(name)
        return repr(text.removeprefix(self._text_before))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
