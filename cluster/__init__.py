"""The only package that knows the whole: configuration, command line, training loop and fleet."""

import sys
from pathlib import Path

# Whatever starts a run imports this first. No file of the user's may stand in for `speech` and the others.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speech.runtime.importing import ours_first

sys.path.pop(0)
ours_first()
