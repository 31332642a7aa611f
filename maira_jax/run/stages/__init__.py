"""A stage's folder: what decides its result, what it leaves, how that grows, and whether it is what was written."""
