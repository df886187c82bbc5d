"""What travels with a model: the records that say what it is, what it was made from and what was found out about it."""
