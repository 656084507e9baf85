"The old name of `bdense_nb.lab.explorers`."
from .lab.explorers import *
