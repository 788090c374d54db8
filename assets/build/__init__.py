"""Builders of everything embedded under `assets/`; each is a program: `python -m assets.build.<name>`."""
