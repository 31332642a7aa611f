"""The study of arXiv 2507.12950 on MIMIC-CXR, from the checkpoint to the paper's table (docs/study.md).

  python -m launch.demo --config=configs/maira2_study.py:CHECKPOINT,MIMIC --workdir=runs/study
  python -m launch.study_report --workdir=runs/study

CHECKPOINT is a Hugging Face folder of MAIRA-2, MIMIC the folder of MIMIC-CXR-JPG with the reports' files/ in it.
--config.studies.split takes an official split, --config.studies.source=NAME another reader of studies. The language
model that --config.judge.model and judge.base_url name explains, scores by detection alone, as in the paper, and
compares steered reports of up to 300 tokens.
"""

from ml_collections import ConfigDict

from configs import base, maira2


def get_config(paths: str = "maira-2,mimic-cxr") -> ConfigDict:
    config = maira2.get_config(paths)
    config.studies = base.studies("mimic_cxr", path=config.studies.path)
    config.sae.companions = {}  # the table is that of 16,384 features
    config.generate.max_new_tokens = 300
    config.interpret.judge = "llm"  # paper
    config.interpret.scorers = ("detection",)  # paper
    config.steer.update(
        {
            "positions": ("generated",),  # paper: during generation
            "max_new_tokens": 300,
            "top": 24,
            "studies": 50,
        }
    )
    config.evaluate.update({"judge": "llm", "judge_studies": 50})  # paper: a language model compares the reports
    return config
