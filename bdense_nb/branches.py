"The old name of `bdense_nb.distillation.branches`."
from .distillation.branches import *
