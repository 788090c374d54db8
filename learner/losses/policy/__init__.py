"""Policy losses: each module is one, registered under the module's name (`learner.loss.name`)."""
