"The old name of `bdense_nb.lab.alignment`."
from .lab.alignment import *
