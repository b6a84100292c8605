"""A masked language model, for attacks: the words that it would write in another word's place."""

from __future__ import annotations

from collections.abc import Sequence

from seamcurate.errors import ModelError
from seamcurate.models import checkpoint, weights
from seamcurate.models.batching import Batches, padded
from seamcurate.models.local import check_whole, model_errors

_BATCH_TOKENS = 8192
_BPE_SPACE = "Ġ"


class MaskedModel:
    """Any masked language model of transformers, with a fast tokenizer.

    Args:
        path: A folder, or a Hugging Face Hub id.
        count: How many words `likely` returns for each span.

    Raises:
        ModelError: It cannot be loaded, was trained as something else, or its tokenizer does not say where tokens stand.
    """

    def __init__(self, path: str, count: int) -> None:
        import torch
        from transformers import AutoModelForMaskedLM

        self.count, origin = count, weights.Origin(path)
        with model_errors(f"masked_model {path}"):
            self.tokenizer = checkpoint.read_tokenizer(origin)
            model, lacking = checkpoint.open_model(AutoModelForMaskedLM, origin)
        check_whole(f"masked_model {path}", "a masked language model", lacking)
        if not self.tokenizer.is_fast:
            raise ModelError(f"masked_model {path}: its tokenizer does not say where tokens stand; give a fast one")
        self.model = model.to(weights.device("auto")).eval()
        self.batches = Batches(_BATCH_TOKENS, self.model.device)
        self.limit = weights.window(self.model, self.tokenizer)
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        begins = any(token.startswith(_BPE_SPACE) for token in tokens)
        # Only whole words: in a byte-level vocabulary the tokens with a space before them, in WordPiece's those without ##.
        self.words = [token.removeprefix(_BPE_SPACE) for token in tokens]
        is_whole_word = [
            word.isalpha() and token.startswith(_BPE_SPACE) == begins
            for word, token in zip(self.words, tokens, strict=True)
        ]
        self.barred = torch.tensor([not is_whole for is_whole in is_whole_word], device=self.model.device)

    def likely(self, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[list[str]]:
        """Return the likeliest words in place of each text's span, likeliest first; none where the window cuts the span."""
        import torch

        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.limit, return_offsets_mapping=True, verbose=False
        )
        ids = encoded["input_ids"]
        positions = [
            [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
            for offsets, span in zip(encoded["offset_mapping"], spans, strict=True)
        ]
        likely_words: list[list[str]] = [[] for _ in texts]

        def read(batch: list[int]) -> list[list[str]]:
            inputs = padded([ids[i] for i in batch], self.tokenizer.pad_token_id or 0, self.model.device)
            logits = self.model(**inputs).logits.float()
            # Where a word has several tokens, their logits are averaged: (batch, vocabulary).
            span_logits = torch.stack([logits[row, positions[i]].mean(0) for row, i in enumerate(batch)])
            word_logits = span_logits.masked_fill(
                self.barred[: span_logits.shape[1]], -torch.inf
            )  # (batch, vocabulary)
            return [[self.words[i] for i in row] for row in word_logits.topk(self.count).indices.tolist()]

        readable = [i for i, tokens_of_span in enumerate(positions) if tokens_of_span]
        with torch.inference_mode():
            for batch, words in self.batches.read(
                [len(ids[i]) for i in readable], lambda batch: read([readable[i] for i in batch])
            ):
                for i, words_of_text in zip(batch, words, strict=True):
                    likely_words[readable[i]] = words_of_text
        return likely_words
