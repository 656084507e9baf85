"The old name of `bdense_nb.distillation.progressive`; called, it is the function that `bdense_nb.progressive` is."
from . import _callable
from .distillation.progressive import *
from .distillation.progressive import progressive

_callable(__name__, progressive)
