"""What the locks under requirements/ hold."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEVICES = ("cpu", "gpu")
BUILT_FOR_A_DEVICE = {"torch", "triton", "apache-tvm-ffi"}
"""Whose releases differ between the locks."""
LEFT_OUT = {
    "cpu": {"torchvision", "torchaudio", "torchcodec", "webrtcvad", "typing"},
    "gpu": {"webrtcvad", "typing"},
}
"""What other packages ask for and neither needs (`make lock`)."""


def lock(device: str) -> dict[str, str]:
    """Package → release."""
    lines = (ROOT / "requirements" / f"{device}.lock").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in found}
