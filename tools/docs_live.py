"""What the page with the live demonstration loads: both networks as ONNX, how each samples, and a picture for those who cannot run it.

python tools/docs_live.py FOLDER
"""

import gzip
import json
import sys
import warnings
from pathlib import Path

import onnx
import torch

from bdense_nb.core import data_dir
from bdense_nb.diffusion.data import FASHION_CLASSES
from bdense_nb.diffusion.stored import load_teacher
from bdense_nb.diffusion.samplers import Sampler, sample
from bdense_nb.distillation.distill import preset
from bdense_nb.distillation.students import Student, load_student
from bdense_nb.evaluation.pictures import show_rows
from bdense_nb.interop.export import export_onnx
from docs_pictures import twins


def samplers() -> dict[str, Sampler]:
    "The student that ships, and the teacher as its comparisons run it."
    teacher = preset('demo').reference().sampler(load_teacher(device='cpu'))
    return {
        'teacher': teacher,
        'student': load_student(data_dir() / 'fashion_mnist_student', 'cpu'),
    }


def recipe(sampler: Sampler) -> dict:
    """Network calls in order, each with its noise level and its input, and the sample; inputs and sample are given by
    their coefficients of unit noise and of the answers so far. They come from the package's own solver, run on unit vectors."""
    units = torch.eye(sampler.nfe + 1, dtype=torch.float64)
    calls = []

    def denoise(x, sigma, cond=None):
        calls.append({'sigma': sigma, 'input': x[0, : len(calls) + 1].tolist()})
        return units[[len(calls)]]

    end = sample(
        denoise, float(sampler.sigmas[0]) * units[:1], sampler.sigmas, sampler.solver, sampler.afs
    )
    return {'calls': calls, 'sample': end[0].tolist()}


def with_weights(step: Path, denoiser: torch.nn.Module, other: torch.nn.Module, path: Path) -> None:
    "The ONNX step of a denoiser with the weights of another that is built alike: a second export would take seconds."
    parts = lambda d: [p.detach().numpy().tobytes() for p in d.parameters()]
    theirs, model = dict(zip(parts(denoiser), parts(other), strict=True)), onnx.load(step)
    held = [tensor for tensor in model.graph.initializer if tensor.raw_data in theirs]
    assert len(held) == len(theirs) == len(parts(other)), 'the file holds every weight once'
    for tensor in held:
        tensor.raw_data = theirs[tensor.raw_data]
    onnx.save(model, path)


def write_live(folder: Path) -> None:
    "teacher.onnx.gz, student.onnx.gz, live.json, still.png and still.dark.png in the folder."
    folder.mkdir(parents=True, exist_ok=True)
    both = samplers()
    teacher, student = both.values()
    paths = [folder / f'{name}.onnx' for name in both]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            'ignore', category=UserWarning, module='torch'
        )  # of names that torch gives to axes
        export_onnx(Student(teacher.denoiser, teacher.sigmas, teacher.afs, teacher.shape), paths[0])
    with_weights(paths[0], teacher.denoiser, student.denoiser, paths[1])
    for path in paths:
        (folder / f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes(), 6, mtime=0))
        path.unlink()
    how = {name: recipe(sampler) for name, sampler in both.items()}
    (folder / 'live.json').write_text(
        json.dumps({'classes': FASHION_CLASSES, **how}), encoding='utf-8'
    )
    classes = range(len(FASHION_CLASSES))
    rows = {
        f'{name}\n{s.nfe} calls': s.sample(len(classes), 0, classes) for name, s in both.items()
    }
    show_rows(
        rows,
        titles=[name.replace('/', '/\n').replace(' ', '\n') for name in FASHION_CLASSES],
        save=folder / 'still.png',
    )
    twins(folder / 'still.png')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_live(Path(sys.argv[1]))
