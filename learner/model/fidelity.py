"""Whether the learner's way through a language model is the model's own function: asked once, when it is loaded.

The learner runs the decoder's layers over packed rows with an attention of its own and applies the output layer itself.
A model that does more (a bias, a scale or a soft cap on its logits, a window or a bias in its attention) would be
trained on log-probs that are not those of its samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from learner.batches.batch import Block
from learner.model import attention
from speech.errors import UserError

PROMPT, RESPONSES = 5, (4, 3)
LARGE = 100.0
"""Size of the logits at which the output layer is tried: a soft cap bends large ones only."""


def logits_factor(config: Any) -> float:
    """What the final hidden state is multiplied with before the output layer: Granite divides its logits."""
    return 1 / float(getattr(config, "logits_scaling", None) or 1)


@torch.no_grad()
def check_language_model(model: PreTrainedModel, path: Path) -> None:
    """Compare the learner's way with the model's own on a few random tokens; the weights are not copied.

    Leaves the model with the attention for packed rows.

    Args:
        model: on the CPU, not sharded.
        path: of its checkpoint, for messages.

    Raises:
        UserError: they differ, or the learner has no way through this model; it says where.
    """
    try:
        # The form in which a model was written down. Models that share a configuration would otherwise come with the
        # attention for packed rows, which the first of them was left with.
        model.set_attn_implementation("eager")
        fault = _unfit(model) or _other_head(model) or _other_body(model)
    except Exception as error:
        raise _refusal(model, path, f"it fails with {type(error).__name__}: {error}") from error
    if fault is not None:
        raise _refusal(model, path, fault)


def _refusal(model: PreTrainedModel, path: Path, fault: str) -> UserError:
    return UserError(
        f"{path}: the learner cannot compute the language model {type(model).__name__} as it was trained: {fault} "
        "(docs/model-families.md, What a language model must be)"
    )


def _unfit(model: PreTrainedModel) -> str | None:
    """What no short row of random tokens would show."""
    head, config = model.get_output_embeddings(), model.config
    if not isinstance(getattr(model.base_model, "layers", None), nn.ModuleList):
        return "its decoder layers are not at base_model.layers"
    if head is None:
        return "it has no output layer"
    if getattr(head, "bias", None) is not None:
        return "its output layer has a bias"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        return f"its layers are of the kinds {', '.join(kinds)}, and only full attention is known"
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        return f"its rotary embedding ({kind}) depends on how many positions a row has"
    return None


def _other_head(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings().weight
    drawn = torch.randn(1, 8, head.shape[1], generator=torch.Generator().manual_seed(1)).to(head)
    drawn *= LARGE / (nn.functional.linear(drawn, head).abs().max().float() * logits_factor(model.config)).item()

    def replace(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = drawn
        return output

    handle = model.base_model.register_forward_hook(replace)
    try:
        own = model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False).logits
    finally:
        handle.remove()
    ours = nn.functional.linear(drawn * logits_factor(model.config), head)
    return _gap("its logits are not the product of output layer and hidden state", own, ours)


def _other_body(model: PreTrainedModel) -> str | None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (PROMPT + sum(RESPONSES),), generator=torch.Generator().manual_seed(2))
    prompt, *responses = ids.split([PROMPT, *RESPONSES])
    own = [model.base_model(input_ids=torch.cat([prompt, r])[None], use_cache=False)[0][0] for r in responses]
    attention.register()
    model.set_attn_implementation(attention.NAME)
    positions = torch.cat([torch.arange(PROMPT), *(torch.arange(PROMPT, PROMPT + n) for n in RESPONSES)])
    ours = model.base_model(
        inputs_embeds=model.get_input_embeddings()(ids)[None],
        position_ids=positions[None],
        use_cache=False,
        blocks=(Block(0, PROMPT, RESPONSES),),
    ).last_hidden_state[0]
    expected = torch.cat([own[0], *(states[PROMPT:] for states in own[1:])])
    return _gap("its hidden states differ in packed rows", expected, ours)


def _gap(what: str, own: torch.Tensor, ours: torch.Tensor) -> str | None:
    largest = own.float().abs().max()
    gap = float((own.float() - ours.float()).abs().max() / largest)
    # Rounding of two orders of summation, through all layers; what is looked for is far larger.
    bound = 1e-3 if own.dtype in (torch.float32, torch.float64) else 8 * torch.finfo(own.dtype).eps
    return None if gap <= bound else f"{what}, by {gap:.2g} of the largest"
