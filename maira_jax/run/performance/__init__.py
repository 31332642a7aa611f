"""Where time and memory go, and what keeps them: traces and clocks, compiled programs, freed memory."""
