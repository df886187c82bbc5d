"""Ask a candidate every item of its packs, through a real server, and write down what it answered."""
