"""What of a run a configuration chooses by name, besides losses, advantages and rewards."""

from __future__ import annotations

from typing import Any

from speech.runtime.registry import Registry

TRACKERS: Registry[Any] = Registry("tracker", "cluster.trackers.kinds")
"""`trackers`: subclasses of `cluster.trackers.tracker.Tracker`."""
