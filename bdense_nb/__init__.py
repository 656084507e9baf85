"Dense distillation of diffusion models. The names that people start with stand here and are loaded when they are first used."
from importlib import import_module

__version__ = "0.1.0"
__all__ = ['ConditionTable', 'EDMDenoiser', 'FlowDenoiser', 'GuidedDenoiser', 'Hardware', 'MLP', 'MixtureDenoiser',
           'PDConfig', 'SFDConfig', 'SFDVConfig', 'Sampler', 'Student', 'TrainConfig', 'UNet', 'VPDenoiser',
           'as_denoiser', 'branch', 'check_teacher', 'compare', 'distill', 'fold', 'frechet_distance',
           'from_diffusers', 'load_student', 'load_teacher', 'paired_error', 'preset', 'progressive',
           'sample', 'sfd', 'train_teacher', 'trajectory']
_HOMES = {
    'diffusion.denoisers': 'EDMDenoiser FlowDenoiser GuidedDenoiser MixtureDenoiser VPDenoiser '
                           'check_teacher load_teacher',
    'diffusion.nets': 'MLP UNet',
    'diffusion.samplers': 'ConditionTable Sampler sample trajectory',
    'distillation.branches': 'branch fold',
    'distillation.distill': 'distill preset',
    'distillation.progressive': 'PDConfig progressive',
    'distillation.sfd': 'SFDConfig sfd',
    'distillation.students': 'Student load_student',
    'distillation.teaching': 'train_teacher',
    'distillation.variable': 'SFDVConfig',
    'evaluation.metrics': 'frechet_distance paired_error',
    'interop.diffusers': 'as_denoiser from_diffusers',
    'lab.compare': 'compare',
    'training.config': 'Hardware TrainConfig',
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

TYPE_CHECKING = False
if TYPE_CHECKING:  # for editors and type checkers
    from .diffusion.denoisers import EDMDenoiser, FlowDenoiser, GuidedDenoiser
    from .diffusion.denoisers import MixtureDenoiser, VPDenoiser
    from .diffusion.denoisers import check_teacher, load_teacher
    from .diffusion.nets import MLP, UNet
    from .diffusion.samplers import ConditionTable, Sampler, sample, trajectory
    from .distillation.branches import branch, fold
    from .distillation.distill import distill, preset
    from .distillation.progressive import PDConfig, progressive
    from .distillation.sfd import SFDConfig, sfd
    from .distillation.students import Student, load_student
    from .distillation.teaching import train_teacher
    from .distillation.variable import SFDVConfig
    from .evaluation.metrics import frechet_distance, paired_error
    from .interop.diffusers import as_denoiser, from_diffusers
    from .lab.compare import compare
    from .training.config import Hardware, TrainConfig


def __getattr__(name: str):
    "A name of the list above, from its module."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value = getattr(import_module(f'.{_HOME[name]}', __name__), name)
    return value


def _callable(module: str, function) -> None:
    "Let a module with an old name be called as the function of that name is."
    import sys
    from types import ModuleType
    call = {'__call__': staticmethod(function)}
    sys.modules[module].__class__ = type('_Callable', (ModuleType,), call)


def __dir__() -> list[str]: return sorted({*globals(), *__all__})
