"""From exemplars to explanations: what an explainer is shown, the explainers, a file each, and their prompts."""

from interp.explainers import llm as llm
from interp.explainers import offline as offline
from interp.explainers.explainer import EXPLAINERS as EXPLAINERS
