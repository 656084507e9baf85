"What `import bdense_nb` offers: names people start with, loaded when first used; and the old names of modules."

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bdense_nb
from warm import python

LIB = Path(bdense_nb.__file__).parent
OLD = sorted(bdense_nb._OLD)


def fresh(code: str) -> str:
    "What this prints in a fresh interpreter."
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_costs_next_to_nothing():
    loaded = 'import sys; before = set(sys.modules); import bdense_nb; print(*sorted(set(sys.modules) - before))'
    assert set(fresh(loaded).split()) <= {
        'bdense_nb',
        'importlib',
        'importlib._abc',
        'warnings',
        'importlib._bootstrap',
        'importlib._bootstrap_external',
    }


def test_names_are_loaded_when_first_used():
    "And Optuna by a search only; PyTorch's compiler not by a teacher that is loaded."
    code = (
        'import sys, bdense_nb; dir(bdense_nb); assert "torch" not in sys.modules; bdense_nb.TrainConfig;'
        'print("bdense_nb.training.loop" in sys.modules, "bdense_nb.diffusion" in sys.modules);'
        'import bdense_nb.distillation.distill; print("bdense_nb.lab.search" in sys.modules);'
        'import bdense_nb.lab.search; print("optuna" in sys.modules);'
        'bdense_nb.load_teacher(); print("torch._dynamo" in sys.modules)'
    )
    assert fresh(code).split() == ['True', 'False', 'False', 'False', 'False']


@pytest.mark.parametrize('name', bdense_nb.__all__)
def test_every_name_is_there(name):
    value = getattr(bdense_nb, name)
    assert name in dir(bdense_nb) and (value.__name__ == name or callable(value))


def test_editors_see_the_same_names():
    tree = ast.parse((LIB / '__init__.py').read_text())
    static = {
        (n.module, a.name)
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and n.level
        for a in n.names
    }
    assert static == {
        (module, name) for module, names in bdense_nb._HOMES.items() for name in names.split()
    }
    assert bdense_nb.__all__ == sorted({name for _, name in static})


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'bdense_nb' has no attribute 'distil'"):
        bdense_nb.distil
    with pytest.raises(ImportError):
        exec('from bdense_nb import nothing')


@pytest.mark.parametrize('old', OLD)
def test_old_names_of_modules(old):
    "The old module offers, as the same objects, all that the new ones export."
    here = import_module(f'bdense_nb.{old}')
    for home in map(import_module, (f'bdense_nb.{m}' for m in bdense_nb._OLD[old].split())):
        assert home.__all__ and all(
            getattr(here, name) is getattr(home, name) for name in home.__all__
        )


def test_every_form_of_import_knows_old_names():
    code = (
        'import pickle, bdense_nb; from bdense_nb import schedules; from bdense_nb.targets import Segment; import bdense_nb.distill as old;'
        'print(schedules.karras_sigmas.__module__, old.estimate_run.__module__, pickle.loads(b"cbdense_nb.sfd\\nSFDConfig\\n.") is bdense_nb.SFDConfig)'
    )
    assert python(code).stdout.strip() == 'bdense_nb.diffusion.schedules bdense_nb.app.plans True'
    with pytest.raises(ModuleNotFoundError, match="No module named 'bdense_nb.nothing'"):
        import_module('bdense_nb.nothing')
    assert not {p.stem for p in LIB.glob('*.py')} & set(OLD), 'a file would come first'


@pytest.mark.parametrize('name', sorted(set(OLD) & set(bdense_nb.__all__)))
def test_a_function_that_shares_its_name_with_an_old_module(name):
    "`bdense_nb.sfd` answers a call, whether the old module has been imported or not."
    code = f'import bdense_nb; f = bdense_nb.{name}; import bdense_nb.{name}; print(f is bdense_nb.{name}.{name}, callable(bdense_nb.{name}))'
    assert python(code).stdout.strip() == 'True True'
    with pytest.raises(TypeError):
        import_module(f'bdense_nb.{name}')()
