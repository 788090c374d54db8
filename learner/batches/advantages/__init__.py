"""Advantage estimators: each module is one, registered under the module's name (`learner.advantage`)."""
