"""The words of chest X-ray reports: which phrases name a finding, negate, hedge or qualify it.

Everything here is data for `maira_jax.reports.labeller`. All patterns run on lower-case text in which runs of
white space are one space. Gaps inside a pattern are bounded, so that text of any kind (a steered
model may repeat itself for ever) is read in linear time.

The fourteen observations are those of the CheXpert labeller (Irvin et al., arXiv 1901.07031,
table 1); cues follow NegEx (Chapman et al. 2001): before the mention, after it, and pseudo-cues
such as "no change" that look like a negation and are none.
"""
