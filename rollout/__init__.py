"""Prompts in, trajectories out: the audio-encoder actor and the vLLM rollout engine."""
