"The old name of `bdense_nb.distillation.sfd`; called, it is the function that `bdense_nb.sfd` is."
import sys
from types import ModuleType

from .distillation.sfd import *
from .distillation.sfd import sfd


class _Callable(ModuleType):
    __call__ = staticmethod(sfd)


sys.modules[__name__].__class__ = _Callable
