"""Trajectories in, rewards out: rules on text, their composition, and the reward actor."""
