"""Scored groups in, new weights out: advantages, losses, the FSDP2 policy and its checkpoints."""
