"The old name of `bdense_nb.app.shell`."
from .app.shell import *
