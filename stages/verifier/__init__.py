"""The verifier: the only place where programs that a model wrote run."""
