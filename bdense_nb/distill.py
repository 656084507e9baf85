"The old name of `bdense_nb.distillation.distill` and `bdense_nb.app.plans`; called, it is the function that `bdense_nb.distill` is."
from . import _callable
from .distillation.distill import *
from .app.plans import *
from .distillation.distill import distill

_callable(__name__, distill)
