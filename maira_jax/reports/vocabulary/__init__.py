"""The words of chest X-ray reports: phrases that name a finding, and phrases that negate, hedge or qualify it.

Everything here is data for `maira_jax.reports.labeller`. All patterns are for lower-case text in which runs of white
space are one space. Gaps inside a pattern are bounded, so that any text is read in linear time, even one in which a
model repeats itself endlessly.

The fourteen observations are those of the CheXpert labeller (Irvin et al., arXiv 1901.07031, table 1). Cues follow
NegEx (Chapman et al. 2001): before the mention, after it, and pseudo-cues such as "no change" that look like a
negation but are not.
"""
