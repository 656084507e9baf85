"The old name of `bdense_nb.distillation.bank`."
from .distillation.bank import *
