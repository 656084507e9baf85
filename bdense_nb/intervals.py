"The old name of `bdense_nb.evaluation.intervals`."
from .evaluation.intervals import *
