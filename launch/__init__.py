"""The commands: one per stage, and `demo` for all stages in succession."""
