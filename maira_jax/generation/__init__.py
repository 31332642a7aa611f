"""Reports from studies: the decoding loop, the stage behind `launch.generate`, grounded phrases and their pictures."""
