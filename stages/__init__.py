"""The stages of Sluice: each a command of its own, in an environment of its own."""
