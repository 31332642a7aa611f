"""How good explanations are: judges, scorers with their prompts, controls, statistics and known truth."""

from interp.scorers import detection as detection
from interp.scorers import fuzzing as fuzzing
from interp.scorers import intruder as intruder
from interp.scorers import llm_judge as llm_judge
from interp.scorers import offline_judge as offline_judge
from interp.scorers.image_judges import IMAGE_JUDGES as IMAGE_JUDGES
from interp.scorers.judge import JUDGES as JUDGES
from interp.scorers.scorer import SCORERS as SCORERS
