"The old name of `bdense_nb.diffusion.schedules`."
from .diffusion.schedules import *
