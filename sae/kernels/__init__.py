"""What exists for speed alone: exact selection without a sort, nested products, and gradients of the kept entries."""
