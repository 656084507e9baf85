"The old name of `bdense_nb.diffusion.samplers`."
from .diffusion.samplers import *
