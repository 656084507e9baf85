"The old name of `bdense_nb.lab.search`."
from .lab.search import *
