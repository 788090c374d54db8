"""A Ray cluster's jobs seen from outside: its Jobs server, what travels to it, and what comes back from it."""
