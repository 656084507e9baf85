"The old name of `bdense_nb.diffusion.nets`."
from .diffusion.nets import *
