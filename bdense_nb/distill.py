"The old name of `bdense_nb.distillation.distill` and `bdense_nb.app.plans`; called, it is the function that `bdense_nb.distill` is."
import sys
from types import ModuleType

from .distillation.distill import *
from .app.plans import *
from .distillation.distill import distill


class _Callable(ModuleType):
    __call__ = staticmethod(distill)


sys.modules[__name__].__class__ = _Callable
