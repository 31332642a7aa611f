"""The phantom: the small world with known truth, and the model that ships with the package.

python -m launch.demo --config=configs/phantom.py --workdir=runs/phantom
"""

import ml_collections
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.checkpoint = "phantom"  # a Hugging Face checkpoint's folder, or the model that ships with the package
    config.model.dtype = "float32"  # of the parameters: float32 or bfloat16
    config.model.mesh = (1, 1)  # devices along the batch, and along each layer, for which the parameters' files are cut

    config.studies = ConfigDict()
    config.studies.source = "phantom"
    config.studies.n = 3000
    config.studies.seed = 1  # other studies than those that the model was trained on

    config.generate = get_generate()
    config.pretrain = get_pretrain()
    config.harvest = get_harvest()
    config.sae, config.train = get_sae(), get_train()
    config.export = get_export()
    config.interpret, config.judge = get_interpret(), get_judge()
    config.label = get_label()
    config.steer, config.evaluate = get_steer(), get_evaluate()
    return config


def get_generate() -> ml_collections.ConfigDict:
    """Which texts launch.generate writes."""
    generate = ConfigDict()
    generate.task = "report"  # report, grounded (with boxes) or phrase (the boxes of a phrase)
    generate.phrase = ""  # with task phrase: what to locate in every study; empty: each study's own phrase
    generate.studies = placeholder(int)  # at most so many, from the first; None: all
    generate.batch_size = 32  # texts written together
    generate.max_new_tokens = placeholder(int)  # None: as on MAIRA-2's card, 300, 450 or 150 by task
    generate.temperature = 0.0  # 0: the most likely token, always; else drawn, by the seed and the study's id
    generate.top_p = 1.0  # only the most likely tokens that add up to this probability are drawn
    generate.save_images = False  # with boxes: each image with its boxes drawn, as PNG
    return generate


def get_pretrain() -> ml_collections.ConfigDict:
    """How launch.pretrain trains a small model of MAIRA-2's architecture from scratch."""
    pretrain = ConfigDict()
    pretrain.recipe = "phantom"  # sizes of the model and phases of its training: phantom or nih_iu
    pretrain.tokenizer_model = ""  # sentencepiece file; empty: a tokenizer is trained on the studies
    pretrain.n_held_out = 500  # phantom studies that the model is evaluated on after the training
    pretrain.checkpoint_every = 200  # steps between two checkpoints, from which training resumes
    return pretrain


def get_harvest() -> ml_collections.ConfigDict:
    """Which activations are stored."""
    harvest = ConfigDict()
    harvest.site = "language.3.resid_post"  # the middle of the language model, as layer 15 is in MAIRA-2
    harvest.token_filter = "method"  # tokens that are kept: method, findings, all or frontal (image)
    harvest.held_out_fraction = 0.15  # of the patients
    harvest.batch_size = 16  # studies in one pass of the model
    harvest.dtype = "float32"  # of the store: float32 or bfloat16
    harvest.arrays = ()  # your own activations instead, without a model: .npy, .safetensors, .zarr or .parquet files
    harvest.column = ""  # which tensor of a .safetensors file, or column of a .parquet file; empty: the only one
    harvest.table = ""  # .parquet or .csv with a row for each study of your arrays: study_id, patient_id, split, labels
    return harvest


def get_sae() -> ml_collections.ConfigDict:
    """The autoencoder."""
    sae = ConfigDict()
    sae.expansion = 8.0  # features for each dimension of the activations
    sae.kind = "batch_top_k"  # what is kept in training: batch_top_k, top_k (of each token) or relu (all positive)
    sae.k = 16  # mean number of features kept a token
    sae.l1 = 0.0  # weight of the sum of a token's features in the loss; for relu
    sae.group_fractions = (0.5, 0.25, 0.125, 0.0625, 0.0625)  # of the features, in each nested group
    sae.group_weights = ()  # of the error up to each group in the loss; empty: the preset's
    sae.companions = ConfigDict()  # NAME: fields that differ; each is trained from the same stream into sae-NAME/
    return sae


def get_train() -> ml_collections.ConfigDict:
    """How the autoencoder is trained. Fields that are None are those of the preset."""
    train = ConfigDict()
    train.preset = "dictionary_learning"  # default or dictionary_learning: for the fields that are left open
    train.steps = 1500  # updates
    train.batch_size = 1024  # tokens
    train.microbatches = 1  # parts in which a batch is computed, to save memory; the result is the same
    train.dtype = "float32"  # of matrix products: float32 or bfloat16; weights and sums are float32
    train.lr = placeholder(float)  # peak
    train.warmup_steps = placeholder(int)  # over which the rate rises from 0
    train.decay_start = placeholder(int)  # step from which the rate falls to 0; train.steps: it stays
    train.auxk_alpha = placeholder(float)  # weight of the loss that revives dead features
    train.dead_tokens = placeholder(int)  # a feature silent for so many tokens is dead
    train.resample_every = 0  # steps after which dead features are made anew from badly described tokens; 0: never
    train.normalize = True  # divide activations by their root mean squared norm; folded into the result
    train.calibration_tokens = 1_000_000  # at most so many held-out tokens set the final threshold
    train.checkpoint_every = 250  # steps
    train.evaluate_every = 250  # steps between evaluations on some held-out tokens, for TensorBoard; 0: at the end only
    train.source = "store"  # activations: store (WORKDIR/activations), or model (run while training, nothing is stored)
    train.splice_studies = 64  # held-out studies for the loss recovered by splicing; 0: not measured
    train.mesh = (1, 1)  # devices along the tokens of a batch, and along the features
    train.update({"lr": 1e-3, "warmup_steps": 100, "decay_start": 1200, "dead_tokens": 100_000})
    return train


def get_export() -> ml_collections.ConfigDict:
    """What the autoencoder is written as, for other programs."""
    export = ConfigDict()
    export.to = ("dictionary_learning", "saelens", "safetensors")  # each into its own folder
    export.fold_normalization = True  # the exported autoencoder takes raw activations; saelens knows no other
    return export


def get_interpret() -> ml_collections.ConfigDict:
    """How features are explained, and how explanations are tested."""
    interpret = ConfigDict()
    interpret.judge = "offline"  # who explains and scores: offline (needs no language model and says so) or llm
    interpret.explainer = placeholder(str)  # who explains the features instead of the judge: offline or llm
    interpret.scorers = ("detection", "fuzzing")  # tests that each explanation is put to; detection always is
    interpret.context_length = 32  # tokens of the longest context; contexts end with their sentence or section
    interpret.n_top = 10  # strongest contexts kept for each feature and split
    interpret.n_explain = 100  # activating train contexts that the explainer sees, and as many non-activating ones
    interpret.n_score = 100  # activating held-out contexts that it is scored on, and as many non-activating ones
    interpret.features = ()  # only these are explained and scored; empty: all
    interpret.min_contexts = 20  # features with fewer activating contexts in a split are not scored
    interpret.n_prompt = 5  # examples in one question to the judge
    interpret.n_control = 128  # controls of each kind: raw dimensions, shuffled weights, shuffled activations
    interpret.bootstrap = 1000  # resamples of the studies for each interval
    interpret.concept_sections = ("findings",)  # a study's score for a concept is taken over their tokens
    interpret.min_studies = 10  # concepts with fewer studies, with or without it, in a split are left out
    return interpret


def get_label() -> ml_collections.ConfigDict:
    """How features are measured against the studies' labels, beside raw dimensions."""
    label = ConfigDict()
    label.sections = ("image",)  # a study is the activations of these sections' tokens
    label.concepts = ()  # these labels; empty: all
    return label


def get_judge() -> ml_collections.ConfigDict:
    """The language model that interpret.judge=llm asks. A key, if needed, is in the environment: OPENAI_API_KEY."""
    judge = ConfigDict()
    judge.base_url = "http://127.0.0.1:8000/v1"  # of an OpenAI-compatible server
    judge.model = ""  # as that server names it
    judge.allow_remote = False  # base_url may be another machine; prompts hold text of reports, and images if asked for
    judge.mode = "live"  # live, or batch: the provider's batch API, which answers within a day at a lower price
    judge.parameters = ConfigDict({"temperature": 0.0, "max_tokens": 512})  # sent with every request
    judge.images = 0  # X-rays in an explaining prompt, for features active on images; 0: the model reads no images
    judge.attempts = 8  # tries of a request that fails, and answers to one whose answers are not of the form asked for
    judge.concurrency = 64  # requests under way
    judge.requests_per_minute = 0.0  # at most; 0: no limit
    judge.tokens_per_minute = 0.0  # in and out, at most; 0: no limit
    judge.price_in, judge.price_out = 0.0, 0.0  # US dollars for a million tokens, as the mode is charged
    judge.max_cost = placeholder(float)  # US dollars for this run directory, all calls together; None: no limit
    return judge


def get_steer() -> ml_collections.ConfigDict:
    """Which reports are written with which edits. Every study has every direction at every strength."""
    steer = ConfigDict()
    steer.name = "concepts"  # name of the sweep, and of its folder in steer/ and evaluation/: a run may have several
    steer.features = ()  # these features; empty: those that match, or the best one of each concept
    steer.match = ""  # regular expression on explanations, e.g. "pleural effusion"
    steer.top = 12  # largest number of features
    steer.combinations = ()  # features to boost and to suppress together: ("12+30-7",); the first gives the concept
    # add, add_several, clamp, class_means, ablate, project, difference_of_means, probe, random or prompt
    steer.methods = ("add", "random")
    steer.strengths = (-1.5, -0.75, 0.75, 1.5)  # in units; 0, the unsteered report, is always there
    steer.unit = "max_activation"  # the feature's; or residual_norm (mean length on the edited tokens); or raw
    # Edited: generated; of the prompt all (prompt), frontal, image, indication, technique, comparison, prior_report.
    steer.positions = ("generated",)
    steer.sae = ""  # another autoencoder's folder or file, whose steer.features are steered; empty: the run's own
    steer.manifest = ""  # a manifest of studies to steer; empty: studies that the autoencoder was not trained on
    steer.studies = 24  # largest number of studies
    steer.batch_studies = 8  # studies whose reports are written together; each prompt is read once
    steer.batch_rows = 16  # reports of each of them written together
    steer.workers = 2  # batches written in parallel: keeps a processor's cores busy; on an accelerator take 1
    steer.max_new_tokens = 136
    steer.temperature = 0.0  # 0: the most likely token, always; else drawn, for all reports of a study alike
    steer.top_p = 1.0  # only the most likely tokens that add up to this probability are drawn
    steer.dry_run = False  # only say how many reports there are, and what memory and time they take
    return steer


def get_evaluate() -> ml_collections.ConfigDict:
    """How steered reports are compared with unsteered ones."""
    evaluate = ConfigDict()
    evaluate.bootstrap = 1000  # resamples of the studies for each interval
    evaluate.judge = "none"  # or llm: the model of the judge section compares the reports, too
    evaluate.judge_studies = 20  # studies, from the first, whose reports it compares
    return evaluate
