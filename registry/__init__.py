"""The registry: candidates, what they were made from, what was found out about them, and which one is served."""

__version__ = "0.1.0"
