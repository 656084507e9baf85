"The old name of `bdense_nb.distillation.students`."
from .distillation.students import *
