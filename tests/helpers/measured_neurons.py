"""MedSAE's measures of neurons over all studies, each of a patient of its own."""

import numpy as np

from interp.features.concepts import StudyLabels
from interp.medsae.basis_measures import measure_basis
from interp.medsae.monosemanticity import NeuronMeasures
from interp.medsae.patient_groups import PatientGroups


def measure(activation: np.ndarray, embedding: np.ndarray, labels: StudyLabels) -> NeuronMeasures:
    """Measures neurons [n, F] with embeddings [n, d] and labels of n studies."""
    groups = PatientGroups.of([str(i) for i in range(len(activation))], 2, 0)
    return measure_basis(activation, embedding, labels, groups, groups.folds(2)).measures
