"""Text to token ids and back, from a Hugging Face directory's `tokenizer.json`."""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from files import UserError


class Tokenizer:
    """Encodes text as plain text: the name of a control token inside it never becomes that token."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Read `folder`/tokenizer.json. Raises `UserError` when it is missing or damaged."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; point model.path at a Hugging Face directory")
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer ({error}); fetch the file again") from None

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: no BOS, no control tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def control(self, token: str) -> int | None:
        """The id of a control token, or None when the vocabulary lacks it."""
        return self.backend.token_to_id(token)
