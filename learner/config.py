"""Configuration of the learner. Each key is documented where it is declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from learner.registries import ADVANTAGES, POLICY_LOSSES
from speech.runtime.schema import OneOf

SAMPLED_OBJECTIVES = ("grpo", "diffro", "combined")
"""Objectives that learn from rollouts of the policy."""

LOSSES_OF_SAMPLES = ("gspo", "gmpo")
"""Policy losses with one ratio per response. What tokens have of their own cancels out in it, but for the mean."""


@dataclass
class LossConfig:
    name: Annotated[str, OneOf(POLICY_LOSSES)] = "grpo"
    """Registered policy loss."""

    clip_low: Annotated[float, Ge(0)] = 0.2
    """Ratio is clipped below at 1 − clip_low."""

    clip_high: Annotated[float, Ge(0)] = 0.28
    """Ratio is clipped above at 1 + clip_high (DAPO's clip-higher)."""

    kl_coef: Annotated[float, Ge(0)] = 0.0
    """β, weight of KL(policy ‖ reference) on the tokens of all samples; 0 loads no reference policy."""

    kl_estimator: Literal["k1", "k2", "k3", "full"] = "k3"
    """KL of each token in the loss: `k3` is GRPO's estimate from the sampled token; `k1` and `k2` have the gradient of
    the reverse KL; `full` sums over the vocabulary: exact, at the price of the reference's logits. `objective: diffro`
    needs `full`."""

    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL stands: a term of the `loss`, or taken off the `reward`, so that a token also answers for the KL of
    those after it. `reward` needs `kl_estimator: k1`."""

    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens of the batch (`token`, DAPO), mean over each response and then over responses (`sequence`,
    GRPO), or sum divided by responses × constant_length (`constant`, Dr. GRPO)."""

    constant_length: Annotated[int, Ge(0)] = 0
    """Length that divides in `constant` aggregation: the rollout's max_new_tokens."""

    importance_cap: Annotated[float, Ge(0)] = 0.0
    """Upper bound of the truncated importance weight learner/engine on each token; 0 = no weight."""


@dataclass
class DiffROConfig:
    """The differentiable reward (`objective: diffro | combined`): docs/algorithms.md."""

    reward_model: str | None = None
    """Folder of the Token2Text model whose log-likelihood is the reward."""

    weight: Annotated[float, Ge(0)] = 1.0
    """λ, the weight of the DiffRO loss; 0 loads no reward model."""

    filter: Literal["positive", "none"] = "positive"
    """Samples in the DiffRO loss: `positive` takes those with an advantage above 0 that drew a stop token, `none` takes
    all."""

    temperature: Annotated[float, Ge(0.01)] = 1.0
    """τ of the Gumbel-Softmax: smaller is harder and noisier."""

    noise: Literal["fresh", "conditional"] = "conditional"
    """Gumbel noise: `fresh` draws another token at every position of the rollout; `conditional` draws noise under which
    the rollout's own token wins."""

    attributes: Annotated[float, Ge(0)] = 0.0
    """Weight of the attributes' log-probs (MTR) beside that of the text."""


@dataclass
class DistillationConfig:
    """On-policy distillation, alone or beside the reward: docs/algorithms.md."""

    teacher: str | None = None
    """Folder of a model of the same vocabulary that stays frozen; null distils nothing. Where the model hears, it must
    read the same audio embeddings."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of KL(policy ‖ teacher) on the tokens of all samples (`learner.loss.kl_estimator`); 0 loads no teacher."""


@dataclass
class Token2TextTrainingConfig:
    """How a reward model becomes robust to what a policy may find out about it (RRPO, 2512.04552)."""

    label_smoothing: Annotated[float, Ge(0), Le(0.9)] = 0.0
    """Share of the uniform distribution in the targets of text and attributes."""

    mixup: Annotated[float, Ge(0)] = 0.0
    """α of the Beta(α, α) share in which each utterance's embeddings are mixed with another's, and their losses
    likewise; 0 mixes nothing."""

    adversarial: Annotated[float, Ge(0)] = 0.0
    """Length of the worst-case shift of an utterance's embeddings, as a share of their own norm; half of the loss is
    then taken at the shifted ones. 0 shifts nothing."""

    noise: Annotated[float, Ge(0), Le(0.9)] = 0.0
    """Probability of replacing a speech token by one drawn from the step's utterances: regularisation for small
    corpora."""

    attributes: Annotated[float, Ge(0)] = 1.0
    """Weight of the attributes' cross-entropy beside the text's."""


@dataclass
class Token2TextModelConfig:
    """What `objective: token2text` trains: a new model of this shape, or one to go on from (`model.path`)."""

    hidden: Annotated[int, Ge(1)] = 128
    """Width; a multiple of `heads`."""

    layers: Annotated[int, Ge(1)] = 3
    """Layers of attention, convolution and feed-forward."""

    heads: Annotated[int, Ge(1)] = 4
    """Attention heads."""

    kernel: Annotated[int, Ge(1)] = 9
    """Tokens that a convolution sees; odd."""

    labels_per_token: Annotated[int, Ge(1)] = 1
    """CTC frames per speech token. A text needs a frame per character: raise it where the codec has fewer tokens a
    second than speech has characters."""

    characters: str | None = None
    """Characters of normalised texts, in one string; null takes those of `data.train`."""

    attributes: list[str] = field(default_factory=list)
    """Attributes to judge beside the text: names in the manifest's `attributes`, or its keys `speaker` and `language`.
    Their classes are those that occur in `data.train`."""

    training: Token2TextTrainingConfig = field(default_factory=Token2TextTrainingConfig)
    """Loss and robustness."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.kernel % 2 == 0:
            raise ValueError("`hidden` must be a multiple of `heads`, and `kernel` odd")
        if self.characters is not None and not 0 < len(self.characters) == len(set(self.characters)):
            raise ValueError("`characters` must be different characters, at least one")
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError("`attributes` names one twice")


@dataclass
class LoraConfig:
    """Low-rank adapters in the place of full training (docs/algorithms.md)."""

    rank: Annotated[int, Ge(1)] = 16
    """r, rows of A and columns of B."""

    alpha: Annotated[int, Ge(1)] = 32
    """α; an adapter's product is scaled by alpha / rank."""

    targets: list[str] | None = None
    """Last parts of the names of the language model's linear layers that get an adapter, such as `q_proj`; null takes
    all of its decoder layers. Those of a projector that learns all get one."""

    scale: Annotated[float, Ge(0)] = 1.0
    """Factor on what the adapters add, in exports only: below 1 the export lies between the model before and the one
    that was trained."""

    @property
    def factor(self) -> float:
        """α / r."""
        return self.alpha / self.rank


@dataclass
class LearnerConfig:
    ranks: Annotated[int, Ge(1)] = 1
    """Ray actors in the FSDP2 gang."""

    threads: Annotated[int, Ge(1)] = 2
    """CPU threads of each rank."""

    gpus_per_rank: float = 0.0
    """GPUs of each rank; 0 trains on the CPU with gloo."""

    train: list[Literal["language_model", "adaptor", "encoder"]] = field(default_factory=lambda: ["language_model"])
    """Parts of the model that learn; the others stay frozen. The encoder can only learn in `sft`."""

    lr: Annotated[float, Ge(0)] = 1e-5
    """Peak learning rate of AdamW."""

    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps of linear warm-up from 0."""

    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up."""

    decay_steps: Annotated[int, Ge(1)] | None = None
    """Decay over the last so many steps; null begins right after the warm-up."""

    lr_floor: Annotated[float, Ge(0)] = 0.0
    """Decay ends at lr_floor × lr."""

    beta1: float = 0.9
    """AdamW's first moment decay."""

    beta2: float = 0.95
    """AdamW's second moment decay."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay on matrices."""

    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Global gradient norm clip; 0 = off."""

    loss: LossConfig = field(default_factory=LossConfig)

    diffro: DiffROConfig = field(default_factory=DiffROConfig)

    lora: LoraConfig | None = None
    """Train low-rank adapters in the linear layers of the parts in `learner.train`, and leave their weights as they
    are; null (the default) trains the weights, and a section without keys is written `{}`. Needs the extra `lora`. An
    encoder that learns learns in full."""

    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    advantage: Annotated[str, OneOf(ADVANTAGES)] = "group_std"
    """Advantage estimator."""

    zero_variance: Literal["keep", "drop", "resample"] = "drop"
    """Groups whose samples all got the same reward: `keep` them in the batch (they still count in the loss's
    normalisation), `drop` them, or `resample` other prompts in their place."""

    updates_per_step: Annotated[int, Ge(1)] = 1
    """Optimiser updates per batch of rollouts; above 1 the ratio clip takes effect."""

    micro_batch_tokens: Annotated[int, Ge(1)] = 4096
    """Positions (prompt + responses) per forward pass and rank."""

    logits_chunk: Annotated[int, Ge(1)] = 2048
    """Response tokens whose logits are in memory at a time."""

    activation_checkpointing: bool = False
    """Recompute each decoder layer in the backward pass to save memory."""

    ctc_weight: Annotated[float, Ge(0)] = 0.0
    """`sft` only: weight of an auxiliary CTC loss on the encoder's output."""

    augment: bool = False
    """`sft` with the encoder trained: change features at random (`learner/model/augment.py`)."""

    step_timeout_s: Annotated[float, Ge(1)] = 1800.0
    """Longest time for one update."""

    restarts: Annotated[int, Ge(0)] = 3
    """How often in a row, without a new step in between, the gang is restarted from the last checkpoint after a rank
    died or did not answer; 0 ends the run at once."""
