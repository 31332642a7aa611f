"""Every reader that is fuzzed, by the kind of what it reads."""

from tests.fuzz.checkpoint_readers import CHECKPOINT_READERS
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.fuzz.run_readers import RUN_READERS
from tests.fuzz.sae_readers import SAE_READERS
from tests.fuzz.study_readers import IMAGE_READERS, STUDY_READERS

READERS: dict[str, FuzzedReader] = CHECKPOINT_READERS | SAE_READERS | IMAGE_READERS | STUDY_READERS | RUN_READERS
