"The old name of `bdense_nb.distillation.segments`."
from .distillation.segments import *
