"The old name of `bdense_nb.evaluation.features`."
from .evaluation.features import *
