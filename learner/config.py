"""Configuration of the learner. Each key is documented where it is declared."""

from __future__ import annotations

from dataclasses import dataclass, field

from learner.registries import ADVANTAGES, POLICY_LOSSES

SAMPLED_OBJECTIVES = ("grpo", "diffro", "combined")
"""Objectives that learn from rollouts of the policy."""


@dataclass
class LossConfig:
    name: str = field(default="grpo", metadata={"help": "Registered policy loss.", "choices": POLICY_LOSSES})
    clip_low: float = field(default=0.2, metadata={"help": "Ratio is clipped below at 1 − clip_low.", "min": 0.0})
    clip_high: float = field(
        default=0.28, metadata={"help": "Ratio is clipped above at 1 + clip_high (DAPO's clip-higher).", "min": 0.0}
    )
    kl_coef: float = field(
        default=0.0, metadata={"help": "Weight of KL(policy ‖ reference); 0 loads no reference policy.", "min": 0.0}
    )
    kl_estimator: str = field(
        default="k3",
        metadata={
            "help": "Per-token KL estimator in the loss: `k3` is GRPO's; `k1` and `k2` have the gradient of the "
            "reverse KL.",
            "choices": ("k1", "k2", "k3"),
        },
    )
    aggregation: str = field(
        default="token",
        metadata={
            "help": "Mean over all tokens of the batch (`token`, DAPO), mean over each response and then over "
            "responses (`sequence`, GRPO), or sum divided by responses × constant_length (`constant`, Dr. GRPO).",
            "choices": ("token", "sequence", "constant"),
        },
    )
    constant_length: int = field(
        default=0,
        metadata={"help": "Length that divides in `constant` aggregation: the rollout's max_new_tokens.", "min": 0},
    )
    importance_cap: float = field(
        default=0.0,
        metadata={
            "help": "Upper bound of the truncated importance weight learner/engine on each token; 0 = no weight.",
            "min": 0.0,
        },
    )


@dataclass
class DiffROConfig:
    """The differentiable reward (`objective: diffro | combined`): docs/algorithms.md."""

    reward_model: str | None = field(
        default=None, metadata={"help": "Folder of the Token2Text model whose log-likelihood is the reward."}
    )
    weight: float = field(
        default=1.0, metadata={"help": "λ, the weight of the DiffRO loss; 0 loads no reward model.", "min": 0.0}
    )
    filter: str = field(
        default="positive",
        metadata={
            "help": "Samples in the DiffRO loss: `positive` takes those with an advantage above 0 that drew a stop "
            "token, `none` takes all.",
            "choices": ("positive", "none"),
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "τ of the Gumbel-Softmax: smaller is harder and noisier.", "min": 0.01}
    )
    noise: str = field(
        default="conditional",
        metadata={
            "help": "Gumbel noise: `fresh` draws another token at every position of the rollout; `conditional` "
            "draws noise under which the rollout's own token wins.",
            "choices": ("fresh", "conditional"),
        },
    )
    kl_coef: float = field(
        default=0.0,
        metadata={
            "help": "β, weight of the full KL(policy ‖ reference), summed over the vocabulary at every position of "
            "all samples; 0 leaves it out. `learner.loss.kl_coef` is the estimate from sampled tokens.",
            "min": 0.0,
        },
    )
    attributes: float = field(
        default=0.0,
        metadata={"help": "Weight of the attributes' log-probs (MTR) beside that of the text.", "min": 0.0},
    )


@dataclass
class Token2TextTrainingConfig:
    """How a reward model becomes robust to what a policy may find out about it (RRPO, 2512.04552)."""

    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "Share of the uniform distribution in the targets of text and attributes.",
            "min": 0.0,
            "max": 0.9,
        },
    )
    mixup: float = field(
        default=0.0,
        metadata={
            "help": "α of the Beta(α, α) share in which each utterance's embeddings are mixed with another's, and "
            "their losses likewise; 0 mixes nothing.",
            "min": 0.0,
        },
    )
    adversarial: float = field(
        default=0.0,
        metadata={
            "help": "Length of the worst-case shift of an utterance's embeddings, as a share of their own norm; half "
            "of the loss is then taken at the shifted ones. 0 shifts nothing.",
            "min": 0.0,
        },
    )
    noise: float = field(
        default=0.0,
        metadata={
            "help": "Share of an utterance's speech tokens that random ones, from the step's utterances, take the "
            "place of. Against learning few recordings by heart.",
            "min": 0.0,
            "max": 0.9,
        },
    )
    attributes: float = field(
        default=1.0, metadata={"help": "Weight of the attributes' cross-entropy beside the text's.", "min": 0.0}
    )


@dataclass
class Token2TextModelConfig:
    """What `objective: token2text` trains: a new model of this shape, or one to go on from (`model.path`)."""

    hidden: int = field(default=128, metadata={"help": "Width; a multiple of `heads`.", "min": 1})
    layers: int = field(default=3, metadata={"help": "Layers of attention, convolution and feed-forward.", "min": 1})
    heads: int = field(default=4, metadata={"help": "Attention heads.", "min": 1})
    kernel: int = field(default=9, metadata={"help": "Tokens that a convolution sees; odd.", "min": 1})
    labels_per_token: int = field(
        default=1,
        metadata={
            "help": "CTC frames per speech token. A text needs a frame per character: raise it where the codec has "
            "fewer tokens a second than speech has characters.",
            "min": 1,
        },
    )
    characters: str | None = field(
        default=None,
        metadata={"help": "Characters of normalised texts, in one string; null takes those of `data.train`."},
    )
    attributes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Attributes to judge beside the text: names in the manifest's `attributes`, or its keys `speaker` "
            "and `language`. Their classes are those that occur in `data.train`."
        },
    )
    training: Token2TextTrainingConfig = field(
        default_factory=Token2TextTrainingConfig, metadata={"help": "Loss and robustness."}
    )

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.kernel % 2 == 0:
            raise ValueError("`hidden` must be a multiple of `heads`, and `kernel` odd")
        if self.characters is not None and not 0 < len(self.characters) == len(set(self.characters)):
            raise ValueError("`characters` must be different characters, at least one")
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError("`attributes` names one twice")


@dataclass
class LearnerConfig:
    ranks: int = field(default=1, metadata={"help": "Ray actors in the FSDP2 gang.", "min": 1})
    threads: int = field(default=2, metadata={"help": "CPU threads of each rank.", "min": 1})
    gpus_per_rank: float = field(default=0.0, metadata={"help": "GPUs of each rank; 0 trains on the CPU with gloo."})
    train: list[str] = field(
        default_factory=lambda: ["language_model"],
        metadata={
            "help": "Parts of the model that learn; the others stay frozen. The encoder can only learn in `sft`.",
            "choices": ("language_model", "adaptor", "encoder"),
        },
    )
    lr: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW.", "min": 0.0})
    warmup_steps: int = field(default=0, metadata={"help": "Steps of linear warm-up from 0.", "min": 0})
    decay: str = field(
        default="constant",
        metadata={"help": "Learning rate after warm-up.", "choices": ("constant", "linear", "cosine")},
    )
    decay_steps: int | None = field(
        default=None,
        metadata={"help": "Decay over the last so many steps; null begins right after the warm-up.", "min": 1},
    )
    lr_floor: float = field(default=0.0, metadata={"help": "Decay ends at lr_floor × lr.", "min": 0.0})
    beta1: float = field(default=0.9, metadata={"help": "AdamW's first moment decay."})
    beta2: float = field(default=0.95, metadata={"help": "AdamW's second moment decay."})
    weight_decay: float = field(default=0.0, metadata={"help": "Decoupled weight decay on matrices.", "min": 0.0})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Global gradient norm clip; 0 = off.", "min": 0.0})
    loss: LossConfig = field(default_factory=LossConfig)
    diffro: DiffROConfig = field(default_factory=DiffROConfig)
    advantage: str = field(
        default="group_std",
        metadata={"help": "Advantage estimator.", "choices": ADVANTAGES},
    )
    zero_variance: str = field(
        default="drop",
        metadata={
            "help": "Groups whose samples all got the same reward: `keep` them in the batch (they still count in the "
            "loss's normalisation), `drop` them, or `resample` other prompts in their place.",
            "choices": ("keep", "drop", "resample"),
        },
    )
    updates_per_step: int = field(
        default=1,
        metadata={"help": "Optimiser updates per batch of rollouts; above 1 the ratio clip takes effect.", "min": 1},
    )
    micro_batch_tokens: int = field(
        default=4096, metadata={"help": "Positions (prompt + responses) per forward pass and rank.", "min": 1}
    )
    shared_prefix: bool = field(
        default=True, metadata={"help": "Compute a group's prompt once instead of once per sample."}
    )
    logits_chunk: int = field(
        default=2048, metadata={"help": "Response tokens whose logits are in memory at a time.", "min": 1}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute each decoder layer in the backward pass to save memory."}
    )
    ctc_weight: float = field(
        default=0.0,
        metadata={"help": "`sft` only: weight of an auxiliary CTC loss on the encoder's output.", "min": 0.0},
    )
    augment: bool = field(
        default=False,
        metadata={"help": "`sft` with the encoder trained: change features at random (`learner/model/augment.py`)."},
    )
    step_timeout_s: float = field(default=1800.0, metadata={"help": "Longest time for one update.", "min": 1.0})
    restarts: int = field(
        default=3,
        metadata={
            "help": "How often in a row, without a new step in between, the gang is restarted from the last checkpoint "
            "after a rank died or did not answer; 0 ends the run at once.",
            "min": 0,
        },
    )
