"""Reads the residual stream of one study, after `launch.demo --workdir=runs/first`."""

from pathlib import Path

import numpy as np

from maira_jax.checkpoint import store
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.prompt import reporting_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.studies.study import Study

model = Path("runs/first/model")
study = Study("s1", "p1", frontal=Path("images/s1.png"), indication="Cough.")
tokens = Tokenizer.from_dir(model).encode(reporting_prompt(study))
pixels = preprocess(study.frontal, ImageConfig.from_dir(model))

params, cfg = store.load(model)
site = Site.parse("language.3.resid_post", cfg)
sites = maira2.forward(
    params, cfg, tokens.ids[None], np.ones((1, len(tokens)), bool), pixels[None, None], read=(site,), logits=False
).sites  # {"language.3.resid_post": [1, tokens, d_model]}
