"""Embedded data and models, and the programs that make them (see `assets.build`)."""
