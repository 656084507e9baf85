"The old name of `bdense_nb.evaluation.metrics`."
from .evaluation.metrics import *
