"""Run directories: stages and their manifests, atomic and resumable files, sections of the configuration, progress."""
