"""Sending candidates elsewhere: what travels with a model, what may be sent, and the places it can be sent to."""
