"""What radiology reports say, for any text: a CheXpert-style labeller, changes between two reports, text measures.

    >>> from maira_jax.reports.labeller import chexpert, extract
    >>> findings = extract("Small left pleural effusion, unchanged. No pneumothorax.")
    >>> chexpert(findings)
    {'pleural effusion': 'present', 'pneumothorax': 'absent', 'no finding': 'absent'}

`labeller` is the public face of the labeller; `mentions`, `status` and `attributes` are its steps, and `vocabulary`
holds its words. `changes` compares two reports by what the labeller finds, `radfact` two grounded reports by their
boxes as well, `statements` rewrites reports, `history` finds comparisons with earlier studies, and `text` measures the
wording alone.
"""
