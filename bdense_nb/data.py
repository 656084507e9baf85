"The old name of `bdense_nb.diffusion.data`."
from .diffusion.data import *
