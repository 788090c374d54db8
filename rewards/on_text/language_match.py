"""Language match (Fun-ASR, named in PAPER §2): the transcript is in the language that was spoken."""

from __future__ import annotations

from rewards.registry import PartScore, reward
from speech.records import Group, Trajectory
from speech.text import allowed_scripts, dominant_script, expected_scripts, guess_language, language_code


@reward("language_match")
def language_match(group: Group) -> list[PartScore]:
    """1 when the language that the model claims is the utterance's *and* the transcript is in one of its scripts,
    else 0. What is unknown is not asked: a model that claims nothing is judged by script alone. An empty transcript
    matches only an empty reference."""
    return [_score(group, trajectory) for trajectory in group.trajectories]


def _score(group: Group, trajectory: Trajectory) -> PartScore:
    reference, language = group.prompt.utterance.text, group.prompt.utterance.language
    spoken = language_code(language) if language is not None else guess_language(reference)
    script = dominant_script(trajectory.text)
    allowed = allowed_scripts(reference, language)
    if allowed and (own := dominant_script(reference)) is not None:
        allowed |= {own}  # a Mandarin utterance that is nothing but "WiFi" is written in Latin
    if script is not None:
        script_fits = not allowed or script in allowed
    else:  # digits fit every language; nothing at all fits only silence
        script_fits = _has_content(trajectory.text) or not _has_content(reference)
    details = {"script": float(script_fits)}
    claim_fits = True
    if trajectory.language is not None and spoken is not None:
        claim = language_code(trajectory.language)
        # A language that was only guessed from the script says no more than the script: any of that script fits.
        claim_fits = claim == spoken if language is not None else bool(expected_scripts(claim) & allowed)
        details["claim"] = float(claim_fits)
    return PartScore(value=float(script_fits and claim_fits), details=details)


def _has_content(text: str) -> bool:
    return any(character.isalnum() for character in text)
