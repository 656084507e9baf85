"The old name of `bdense_nb.training.checkpoints`."
from .training.checkpoints import *
