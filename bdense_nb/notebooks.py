"The old name of `bdense_nb.app.course`."
from .app.course import *
