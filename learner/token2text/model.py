"""Token2Text: the differentiable reward model of DiffRO, speech tokens → text and attributes (2507.05911).

An ASR encoder whose acoustic front-end is replaced by an embedding of speech tokens. Being linear in one-hot vectors,
the embedding takes soft ones as well, and passes on their gradient. `log P(Y | U)` is a CTC likelihood; the multi-task
heads (MTR) judge attributes of the whole utterance (docs/decisions/015-token2text-is-ctc.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from learner.batches.ctc import frames_needed
from learner.model.logprobs import full_precision
from speech.errors import UserError
from speech.text import normalise

BLANK = 0
"""CTC's blank. Label i + 1 is character i."""

UNKNOWN = -1
"""Class of an attribute that is not known; it is neither trained nor rewarded."""


@dataclass(frozen=True)
class Token2TextConfig:
    """Shape and vocabularies of a reward model, as in its `config.json`.

    Attributes:
        speech_vocabulary: number of the codec's tokens.
        characters: what texts are written with after normalisation; the label of character i is i + 1.
        attributes: classes of each attribute by name.
        hidden, layers, heads: of the transformer.
        kernel: tokens that a convolution sees, odd.
        labels_per_token: CTC frames per speech token. Text needs one frame a character, and one more between equal
            ones: raise it for codecs with fewer tokens a second than speech has characters.
    """

    speech_vocabulary: int
    characters: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kernel: int = 9
    labels_per_token: int = 1

    def __post_init__(self) -> None:
        sizes = (self.speech_vocabulary, self.hidden, self.layers, self.heads, self.labels_per_token)
        if min(sizes) < 1 or self.hidden % self.heads or self.kernel % 2 == 0:
            raise ValueError("sizes must be at least 1, `hidden` a multiple of `heads`, and `kernel` odd")
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError("`characters` must be a list of different characters")
        if any(len(classes) < 2 for classes in self.attributes.values()):
            raise ValueError("an attribute needs at least two classes")

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {character: i + 1 for i, character in enumerate(self.characters)}

    def text_ids(self, text: str, language: str | None) -> tuple[int, ...]:
        """Labels of a text in its normalised form, the one in which errors are counted.

        Raises:
            UserError: the text has no characters, or some that the model does not know; all of them are named.
        """
        normalised = normalise(text, language)
        unknown = sorted(set(normalised) - self._labels.keys())
        if unknown or not normalised:
            what = f"characters that it was not trained on: {' '.join(unknown)}" if unknown else "nothing to say"
            raise UserError(f"the Token2Text model cannot judge the text {text!r}: {what}")
        return tuple(self._labels[character] for character in normalised)

    def attribute_ids(self, values: dict[str, str]) -> tuple[int, ...]:
        """Class of each attribute in the model's order; `UNKNOWN` for attributes without a value.

        Raises:
            UserError: a value that is no class of its attribute.
        """
        for name, value in values.items():
            if name in self.attributes and value not in self.attributes[name]:
                known = ", ".join(self.attributes[name])
                raise UserError(f"attribute {name!r} of the Token2Text model has no class {value!r}; known: {known}")
        return tuple(
            classes.index(values[name]) if name in values else UNKNOWN for name, classes in self.attributes.items()
        )

    def text(self, labels: Sequence[int]) -> str:
        """Labels → characters."""
        return "".join(self.characters[label - 1] for label in labels)

    @classmethod
    def load(cls, folder: str | Path) -> Token2TextConfig:
        """Read `config.json`.

        Raises:
            UserError: the file is missing, damaged, of another kind of model, or makes no sense.
        """
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise UserError(f"Token2Text model {folder} lacks config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(values, dict) or values.pop("model_type", None) != "token2text":
            raise UserError(f"{path}: not the config of a Token2Text model (model_type is not `token2text`)")
        try:
            values["characters"] = tuple(values["characters"])
            values["attributes"] = {name: tuple(classes) for name, classes in values["attributes"].items()}
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Mixture:
    """Other speech that mixup lays over an utterance.

    Attributes:
        tokens: (B, L) ids, padded to the longer of both.
        lengths: (B,) valid tokens of each.
        share: (B,) of the first utterance's embeddings; the others get 1 − share.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    share: torch.Tensor


@dataclass(frozen=True, slots=True)
class Token2TextOutput:
    """What the model says about B utterances.

    Attributes:
        log_probs: (B, frames, characters + 1) of CTC's labels, float32 at least.
        frames: (B,) valid frames of each.
        attributes: (B, classes) logits of each attribute, in the config's order, float32 at least.
        embedded: (B, L, D) embeddings that went into the encoder, before any shift.
    """

    log_probs: torch.Tensor
    frames: torch.Tensor
    attributes: tuple[torch.Tensor, ...]
    embedded: torch.Tensor

    def text_log_likelihood(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """log P(Y | U) of each utterance, (B,); −∞, without gradient, where the text does not fit (`possible`)."""
        nll = F.ctc_loss(
            self.log_probs.transpose(0, 1),
            torch.tensor([i for text in texts for i in text], device=self.log_probs.device),
            self.frames,
            torch.tensor([len(text) for text in texts], device=self.log_probs.device),
            blank=BLANK,
            reduction="none",
            zero_infinity=True,  # keeps NaN out of the gradients of the others
        )
        return -nll.masked_fill(~self.possible(texts), float("inf"))

    def greedy_labels(self) -> list[tuple[int, ...]]:
        """The likeliest label of each frame, repetitions and blanks removed."""
        best = self.log_probs.argmax(2).tolist()
        return [
            tuple(label for label, _ in groupby(row[:frames]) if label != BLANK)
            for row, frames in zip(best, self.frames.tolist(), strict=True)
        ]

    def possible(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B,) bool: whether the text fits into the frames at all."""
        needed = [frames_needed(text) for text in texts]
        return self.frames >= torch.tensor(needed, device=self.frames.device)


class Token2Text(nn.Module):
    """Embedding → layers of attention, convolution and feed-forward → CTC head and attribute heads.

    No dropout and no batch statistics: an utterance's result does not depend on its neighbours, nor on padding.
    """

    def __init__(self, config: Token2TextConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.embedding = nn.Embedding(config.speech_vocabulary, hidden)
        nn.init.normal_(self.embedding.weight, std=hidden**-0.5)
        self.layers = nn.ModuleList(Token2TextLayer(hidden, config.heads, config.kernel) for _ in range(config.layers))
        self.norm = nn.LayerNorm(hidden)
        self.text_head = nn.Linear(hidden, config.labels_per_token * (len(config.characters) + 1))
        self.pooling = nn.Linear(hidden, len(config.attributes), bias=False) if config.attributes else None
        self.attribute_heads = nn.ModuleList(nn.Linear(hidden, len(c)) for c in config.attributes.values())

    @torch.no_grad()
    def init_embedding_from_codec(self, features: torch.Tensor) -> None:
        """Let tokens that sound alike begin with embeddings alike: a random projection of what the codec knows of them,
        at the scale of the random start.

        With few recordings this is what makes a model general: it need not learn the neighbourhoods of its tokens.

        Args:
            features: (speech_vocabulary, F); a row of NaN leaves its token at its random start.

        Raises:
            ValueError: another number of rows.
        """
        if len(features) != self.config.speech_vocabulary:
            raise ValueError(f"{len(features)} rows for {self.config.speech_vocabulary} speech tokens")
        known = features.isfinite().all(1)
        vectors = features[known] @ torch.randn(features.shape[1], self.config.hidden)
        self.embedding.weight[known] = vectors / vectors.std() * self.config.hidden**-0.5

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Speech tokens (…, L) int64, or one-hot vectors, soft or hard, (…, L, V) → (…, L, D)."""
        return tokens @ self.embedding.weight if tokens.is_floating_point() else self.embedding(tokens)

    def forward(
        self,
        tokens: torch.Tensor | None,
        lengths: torch.Tensor,
        *,
        embedded: torch.Tensor | None = None,
        mixed: Mixture | None = None,
        shift: torch.Tensor | None = None,
    ) -> Token2TextOutput:
        """Judge B utterances.

        Args:
            tokens: (B, L) ids or (B, L, V) one-hot vectors; None when `embedded` is given.
            lengths: (B,) valid tokens of each, ≥ 1; what lies behind them is ignored.
            embedded: (B, L, D) embeddings computed elsewhere from this model's table.
            mixed: other speech that is laid over it; the longer one decides the length.
            shift: (B, L, D) added to the embeddings (adversarial training).

        Raises:
            ValueError: an utterance without tokens, or not exactly one of `tokens` and `embedded`.
        """
        if (tokens is None) == (embedded is None):
            raise ValueError("give either tokens or embeddings")
        if int(lengths.min()) < 1:
            raise ValueError("an utterance without speech tokens cannot be judged")
        x = self.embed(tokens) if tokens is not None else embedded
        assert x is not None
        mask = _valid(x, lengths)
        if mixed is not None:
            share = mixed.share.to(x.dtype)[:, None, None]
            other = self.embed(mixed.tokens) * _valid(mixed.tokens, mixed.lengths)[:, :, None]
            x = share * x * mask[:, :, None] + (1 - share) * other
            lengths = torch.maximum(lengths, mixed.lengths)
            mask = _valid(x, lengths)
        inputs = x
        if shift is not None:
            x = x + shift
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        labels = self.text_head(x).unflatten(2, (self.config.labels_per_token, -1)).flatten(1, 2)
        pooled: tuple[torch.Tensor, ...] = ()
        if self.pooling is not None:
            weights = self.pooling(x).masked_fill(~mask[:, :, None], float("-inf")).softmax(1)
            summaries = torch.einsum("bla,bld->abd", weights, x)
            pooled = tuple(full_precision(h(s)) for h, s in zip(self.attribute_heads, summaries, strict=True))
        # On a GPU the layers compute in bfloat16, in which CTC does not exist.
        log_probs = full_precision(labels).log_softmax(2)
        return Token2TextOutput(log_probs, lengths * self.config.labels_per_token, pooled, inputs)

    def save(self, folder: str | Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`.

        Args:
            folder: created.
            state: full tensors to write in place of the module's own (which may be shards).
        """
        target = Path(folder)
        target.mkdir(parents=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in (state or self.state_dict()).items()}
        save_file(tensors, target / "model.safetensors")
        values = {"model_type": "token2text", **asdict(self.config)}
        (target / "config.json").write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Token2Text:
        """Read what `save` wrote, on CPU, in eval mode.

        Raises:
            UserError: a file is missing or damaged, or the weights are of another shape than the config says.
        """
        model = cls(Token2TextConfig.load(folder))
        path = Path(folder) / "model.safetensors"
        if not path.is_file():
            raise UserError(f"Token2Text model {folder} lacks model.safetensors")
        try:
            model.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{path}: does not hold the weights that config.json describes ({error})") from error
        return model.eval()


def _valid(padded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, L) true in front of each length, for a tensor (B, L, …)."""
    return torch.arange(padded.shape[1], device=padded.device)[None, :] < lengths[:, None]


class Token2TextLayer(nn.Module):
    """Pre-norm self-attention, depthwise convolution, feed-forward. Only the convolution knows where a token stands
    among its neighbours, so nothing limits the length of an utterance."""

    def __init__(self, hidden: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.convolution_norm, self.feed_norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.queries = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.pointwise = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L, D), with (B, L) true where a token stands."""
        q, k, v = self.queries(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))
        # Zero where nothing stands: it is what a convolution sees beyond the ends of an utterance.
        quiet = self.convolution_norm(x) * mask[:, :, None]
        x = x + self.pointwise(F.gelu(self.depthwise(quiet.transpose(1, 2)).transpose(1, 2)))
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))


def attribute_nll(output: Token2TextOutput, classes: Sequence[Sequence[int]], smoothing: float = 0.0) -> torch.Tensor:
    """Σ_i −log P(A_i | U) of each utterance, (B,), attributes of class `UNKNOWN` left out.

    Args:
        classes: B rows, one class per attribute.
        smoothing: label smoothing.

    Raises:
        ValueError: a row has not one class for each attribute.
    """
    total = output.log_probs.new_zeros(len(output.frames))
    if any(len(row) != len(output.attributes) for row in classes):
        raise ValueError(f"expected one class for each of {len(output.attributes)} attributes")
    for index, logits in enumerate(output.attributes):
        wanted = torch.tensor([row[index] for row in classes], device=logits.device)
        total = total + F.cross_entropy(
            logits, wanted, ignore_index=UNKNOWN, reduction="none", label_smoothing=smoothing
        )
    return total
