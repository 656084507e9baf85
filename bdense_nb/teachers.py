"The old name of `bdense_nb.diffusion.denoisers` and `bdense_nb.distillation.teaching`."
from .diffusion.denoisers import *
from .distillation.teaching import *
