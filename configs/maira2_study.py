"""The study of arXiv 2507.12950 on MIMIC-CXR, from the checkpoint to the paper's table (docs/study.md).

  python -m launch.demo --config=configs/maira2_study.py:CHECKPOINT,MIMIC --workdir=runs/study
  python -m launch.study_report --config=configs/maira2_study.py:CHECKPOINT,MIMIC --workdir=runs/study

CHECKPOINT is a Hugging Face folder of MAIRA-2, MIMIC the folder of MIMIC-CXR-JPG with the reports' files/ in it.
CHECKPOINT,PATH,SOURCE reads other studies, by the reader of that name. --config.studies.split names an official split,
--config.studies.n a number of studies, --config.judge.model and judge.base_url the language model, which explains,
scores by detection alone, as in the paper, and compares steered reports of up to 300 tokens.
"""

from ml_collections import ConfigDict

from configs import base, maira2


def get_config(paths: str = "maira-2,mimic-cxr") -> ConfigDict:
    checkpoint, path, source = paths.split(",") if paths.count(",") == 2 else (*paths.split(","), "mimic_cxr")
    config = maira2.get_config(f"{checkpoint},{path}")
    config.studies = base.studies(source, **({"path": path} if path else {}))
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
