"""Manifests of other tools, one reader a file.

A reader is a function from the path of a manifest to its `Entry`s and the problems that kept a line from becoming one.
It understands; `check_entry` checks; `speech/manifests/formats.py` lists the readers and says which one a file is for.
"""
