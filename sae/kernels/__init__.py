"""What exists for speed alone: exact selection without a sort, and products of the few entries that are kept."""
