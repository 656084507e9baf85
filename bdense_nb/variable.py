"The old name of `bdense_nb.distillation.variable`."
from .distillation.variable import *
