"The old name of `bdense_nb.lab.experiments`."
from .lab.experiments import *
