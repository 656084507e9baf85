"The old name of `bdense_nb.distillation.progressive`; called, it is the function that `bdense_nb.progressive` is."
import sys
from types import ModuleType

from .distillation.progressive import *
from .distillation.progressive import progressive


class _Callable(ModuleType):
    __call__ = staticmethod(progressive)


sys.modules[__name__].__class__ = _Callable
