"The old name of `bdense_nb.training.devices`."
from .training.devices import *
