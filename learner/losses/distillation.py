"""On-policy distillation: a teacher says how likely it finds each token that the policy sampled."""

from __future__ import annotations

from learner.config import SAMPLED_OBJECTIVES
from learner.model.policy import Policy
from learner.spec import RankSpec
from speech.errors import UserError
from speech.families import LanguageModelFamily, ModelFamily, load_family


def needs_teacher(spec: RankSpec) -> bool:
    """Whether the loss holds a KL to a teacher; otherwise none is loaded."""
    distillation = spec.config.distillation
    return spec.objective in SAMPLED_OBJECTIVES and distillation.teacher is not None and distillation.weight > 0


def teacher_family(spec: RankSpec, student: LanguageModelFamily) -> LanguageModelFamily:
    """The teacher's checkpoint, whose weights are not loaded yet.

    Raises:
        UserError: it has another vocabulary, so that its probabilities are those of other tokens.
    """
    assert spec.config.distillation.teacher is not None
    family = load_family(spec.config.distillation.teacher, spec.family)
    theirs, ours = family.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if theirs != ours:
        differs = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
        shown = ", ".join(f"{token!r} is {ours.get(token)} here and {theirs.get(token)} there" for token in differs[:3])
        raise UserError(
            f"learner.distillation.teacher: {family.path} has another vocabulary: {len(differs)} tokens differ "
            f"({shown})"
        )
    return family


def check_teacher(teacher: Policy, student: Policy, family: LanguageModelFamily, full: bool) -> None:
    """Whether a teacher can read the student's samples.

    Args:
        family: of the student.
        full: the KL is summed over the vocabulary.

    Raises:
        UserError: the student's audio embeddings have another width than the teacher's, or the output layers have
            other numbers of rows and `full` is asked for.
    """
    ours, theirs = (model.language_model.get_input_embeddings().weight.shape for model in (student, teacher))
    if isinstance(family, ModelFamily) and ours[1] != theirs[1]:
        raise UserError(
            f"learner.distillation.teacher: its embeddings are {theirs[1]} wide and the model's {ours[1]}. The learner "
            "gets the audio as the model's own encoder embeds it, which a teacher with another front cannot read"
        )
    rows, others = (model.language_model.get_output_embeddings().weight.shape[0] for model in (student, teacher))
    if full and rows != others:
        raise UserError(
            f"learner.distillation.teacher: its output layer has {others} rows and the model's {rows}; "
            "`learner.loss.kl_estimator: full` compares them one by one, `k1` and `k2` do not"
        )
