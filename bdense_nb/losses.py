"The old name of `bdense_nb.distillation.losses`."
from .distillation.losses import *
