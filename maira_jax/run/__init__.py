"""Run directories: stages, manifests, atomic files and progress."""
