"""What runs in the process that executes one program; with Python's own library alone, for nothing else is there."""
