"""From exemplars to explanations: what an explainer is shown, the explainers, a file each, and their prompts."""

from interp.explainers import llm_explainer as llm_explainer
from interp.explainers import offline_explainer as offline_explainer
from interp.explainers.explainer import EXPLAINERS as EXPLAINERS
from interp.explainers.image_explainers import IMAGE_EXPLAINERS as IMAGE_EXPLAINERS
