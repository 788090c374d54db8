"""Text as it is scored: normalisation, scoring units, languages and scripts. Pure: same text, same result."""

from speech.text.languages import expected_scripts, is_language_code, is_spaced, language_code
from speech.text.normalise import NORMALISER_VERSION, loose_units, normalise, seed_tts_units, units, whisper_units
from speech.text.readings import scored_pair
from speech.text.scripts import allowed_scripts, dominant_script, guess_language, join_texts, script_shares
from speech.text.spans import unit_spans

__all__ = [
    "NORMALISER_VERSION",
    "allowed_scripts",
    "dominant_script",
    "expected_scripts",
    "guess_language",
    "is_language_code",
    "is_spaced",
    "join_texts",
    "language_code",
    "loose_units",
    "normalise",
    "scored_pair",
    "script_shares",
    "seed_tts_units",
    "unit_spans",
    "units",
    "whisper_units",
]
