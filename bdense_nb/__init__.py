"Dense distillation of diffusion models. The names that people start with stand here and are loaded when they are first used."
import sys
from importlib import import_module

__version__ = "0.1.0"
__all__ = ['ConditionTable', 'EDMDenoiser', 'FlowDenoiser', 'GuidedDenoiser', 'Hardware', 'MLP', 'MixtureDenoiser',
           'PDConfig', 'SFDConfig', 'SFDVConfig', 'Sampler', 'Student', 'TrainConfig', 'UNet', 'VPDenoiser',
           'as_denoiser', 'branch', 'check_teacher', 'compare', 'distill', 'fold', 'frechet_distance',
           'from_diffusers', 'load_student', 'load_teacher', 'paired_error', 'preset', 'progressive',
           'sample', 'sfd', 'train_teacher', 'trajectory']
_HOMES = {
    'diffusion.checks': 'check_teacher',
    'diffusion.denoisers': 'EDMDenoiser FlowDenoiser GuidedDenoiser MixtureDenoiser VPDenoiser',
    'diffusion.nets': 'MLP UNet',
    'diffusion.samplers': 'ConditionTable Sampler sample trajectory',
    'diffusion.stored': 'load_teacher',
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
# modules that were at the top, and what has their names now
_OLD = {
    'branches': 'distillation.branches', 'distill': 'distillation.distill app.plans',
    'losses': 'distillation.losses', 'progressive': 'distillation.progressive',
    'sfd': 'distillation.sfd', 'students': 'distillation.students',
    'targets': 'distillation.segments', 'trajectories': 'distillation.bank',
    'variable': 'distillation.variable',
    'data': 'diffusion.data', 'nets': 'diffusion.nets', 'samplers': 'diffusion.samplers',
    'schedules': 'diffusion.schedules',
    'teachers': 'diffusion.denoisers diffusion.identity diffusion.checks diffusion.stored '
                'distillation.teaching',
    'features': 'evaluation.features', 'intervals': 'evaluation.intervals',
    'metrics': 'evaluation.metrics', 'viz': 'evaluation.pictures',
    'experiments': 'lab.worlds lab.experiments lab.differences', 'search': 'lab.search',
    'widgets': 'lab.explorers',
    'checkpoints': 'training.checkpoints', 'devices': 'training.devices', 'hooks': 'training.hooks',
    'cli': 'app.shell', 'notebooks': 'app.course',
    'commands': 'app.common app.sources app.measuring app.commands',
}

TYPE_CHECKING = False
if TYPE_CHECKING:  # for editors and type checkers
    from .diffusion.checks import check_teacher
    from .diffusion.denoisers import EDMDenoiser, FlowDenoiser, GuidedDenoiser
    from .diffusion.denoisers import MixtureDenoiser, VPDenoiser
    from .diffusion.stored import load_teacher
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


class _OldNames:
    "Imports a module by its old name: it offers what the new ones export."

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        package, _, old = name.rpartition('.')
        if package == __name__ and old in _OLD: return type(__spec__)(name, _OldNames)

    @staticmethod
    def create_module(spec): return None

    @staticmethod
    def exec_module(module) -> None:
        old = module.__name__.rpartition('.')[2]
        for home in _OLD[old].split():
            new = import_module(f'.{home}', __name__)
            vars(module).update((name, getattr(new, name)) for name in new.__all__)
        if old in _HOME:  # a function of this name, too: the module is called as that is
            call = {'__call__': staticmethod(getattr(module, old))}
            module.__class__ = type('_Callable', (type(module),), call)


sys.meta_path.append(_OldNames)


def __dir__() -> list[str]: return sorted({*globals(), *__all__})
