"The old name of `bdense_nb.evaluation.pictures`."
from .evaluation.pictures import *
