"The old name of `bdense_nb.distillation.sfd`; called, it is the function that `bdense_nb.sfd` is."
from . import _callable
from .distillation.sfd import *
from .distillation.sfd import sfd

_callable(__name__, sfd)
