"""The embedded server. It runs in the torch environment, in a process of its own; the harness imports none of this."""
