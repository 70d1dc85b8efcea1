"""Text encoder [paper]: word embeddings of BERT, or learned ones -> bidirectional LSTM -> linear layer to D."""

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from timam.models.image_encoder import projection

PAD, UNKNOWN = "[PAD]", "[UNK]"


class WordEmbeddings(nn.Module):
    """Learned word embeddings instead of a language model: token_ids (B, T) -> (B, T, width)."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.embedding(token_ids)


def word_tokenizer(captions: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A transformers tokenizer for the lower-cased words that occur at least twice in the captions.

    Id 0 is the padding, whose vector is all zeros; id 1 is any other word.
    """
    split = tokenizers.Tokenizer(tokenizers.models.WordLevel({}, unk_token=UNKNOWN))
    split.normalizer = tokenizers.normalizers.Lowercase()
    split.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [PAD, UNKNOWN]
    trainer = tokenizers.trainers.WordLevelTrainer(min_frequency=2, special_tokens=special, show_progress=False)
    split.train_from_iterator(captions, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=split, pad_token=PAD, unk_token=UNKNOWN)


class TextEncoder(nn.Module):
    """Token ids (B, T) with their mask -> embeddings (B, D = embedding_dim), not unit length.

    Padding is never read: an embedding depends neither on the amount of padding nor on the rest of the batch.
    A frozen language model gets no gradient and stays in eval mode (no dropout) when `train()` is called.
    With `normalizes_words` each word state is brought to mean 0 and variance 1 before the LSTM [ours].

    Args:
        language_model: (input_ids, attention_mask) -> `last_hidden_state` (B, T, C = input_width); or WordEmbeddings.
        lstm_hidden: width of each direction.
        summary: how T states become one vector. By the LSTM: "max" over time, or "last", each direction's last state.
            Without an LSTM: "pooled mean" of the states, or "pooled last", the state of the last token.
        own_projection: the pretrained last layer; a new linear layer where it is None.
    """

    def __init__(
        self,
        language_model: nn.Module,
        input_width: int,
        lstm_hidden: int,
        embedding_dim: int,
        summary: str,
        own_projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.pooled = summary.startswith("pooled")
        if not self.pooled:
            self.lstm = nn.LSTM(input_width, lstm_hidden, batch_first=True, bidirectional=True)
        features = input_width if self.pooled else 2 * lstm_hidden
        self.projection = projection(features, embedding_dim, own_projection)
        self.new_projection = own_projection is None
        self.summary, self.input_width = summary, input_width
        self.learns_words = isinstance(language_model, WordEmbeddings)
        self.frozen = self.normalizes_words = False

    def freeze(self, frozen: bool = True) -> None:
        """Freezes or unfreezes the language model. Learned word embeddings start random and never freeze."""
        self.frozen = frozen and not self.learns_words
        self.language_model.requires_grad_(not self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TextEncoder":
        super().train(mode)
        if self.frozen:  # Module.train() would switch the frozen model's dropout on again
            self.language_model.eval()
        return self

    def word_states(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) int64 ids and (B, T) mask of 1 and 0 -> the language model's last states (B, T, C)."""
        if self.learns_words:
            return self.language_model(token_ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.language_model(input_ids=token_ids, attention_mask=attention_mask).last_hidden_state

    def forward(self, words: Tensor, attention_mask: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Token ids (B, T) int64, or while the language model is frozen its outputs (B, T, C) -> embeddings (B, D).

        The outputs may have half precision. Padding is on the right, and 0 in the mask (B, T), where tokens are 1.
        `lengths` (B,) is the mask's sum on the CPU; computing it here waits for the GPU.
        """
        states = self.word_states(words, attention_mask) if words.ndim == 2 else words.float()
        if self.pooled:
            return self.projection(self._pool(states, attention_mask))
        if self.normalizes_words:
            states = F.layer_norm(states, states.shape[-1:])
        if states.is_cuda:
            return self.projection(self._packed(states, attention_mask, lengths))
        return self.projection(self._padded(states, attention_mask))

    def _packed(self, word_states: Tensor, attention_mask: Tensor, lengths: Tensor | None) -> Tensor:
        """The summary (B, 2 x hidden) by one call of cuDNN."""
        if lengths is None:
            lengths = attention_mask.sum(dim=1).cpu()
        # Packing makes the backward direction start at the last real token. Sorted here, as torch's own sorting
        # copies the order back from the GPU.
        order, device = lengths.argsort(descending=True), word_states.device
        by_length, back = (o.to(device, non_blocking=True) for o in (order, order.argsort()))
        packed = pack_padded_sequence(word_states[by_length], lengths[order], batch_first=True)
        outputs, (last_states, _) = self.lstm(packed)
        if self.summary == "last":
            return torch.cat([last_states[0], last_states[1]], dim=1)[back]  # forward, backward
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=word_states.shape[1])
        return states.masked_fill(attention_mask[by_length, :, None] == 0, float("-inf")).amax(dim=1)[back]

    def _padded(self, word_states: Tensor, attention_mask: Tensor) -> Tensor:
        """The same on a CPU. Packed sequences miss oneDNN's LSTM, which takes about half the time."""
        batch, time, _ = word_states.shape
        last = attention_mask.sum(dim=1) - 1
        backwards = (last[:, None] - torch.arange(time)).clamp(min=0)[..., None].expand_as(word_states)
        zeros = word_states.new_zeros(1, batch, self.lstm.hidden_size)
        both = word_states, word_states.gather(1, backwards)
        directions = [
            torch.lstm(words, (zeros, zeros), tuple(weights), True, 1, 0.0, self.training, False, True)[0]
            for words, weights in zip(both, self.lstm.all_weights, strict=True)
        ]
        # The backward direction's states are in reversed order, which neither summary depends on.
        states = torch.cat(directions, dim=2)
        if self.summary == "last":
            return states[torch.arange(batch), last]
        return states.masked_fill(attention_mask[..., None] == 0, float("-inf")).amax(dim=1)

    def _pool(self, word_states: Tensor, attention_mask: Tensor) -> Tensor:  # shape[0]: torch.export fixes len()
        lengths = attention_mask.sum(dim=1)
        if self.summary == "pooled last":
            return word_states[torch.arange(word_states.shape[0], device=word_states.device), lengths - 1]
        return (word_states * attention_mask[..., None]).sum(dim=1) / lengths[:, None]
