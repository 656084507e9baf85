"""Draw what the front page shows: data/results/method.svg, spiral.gif and gains.png.

python tools/pictures.py            # all; about two minutes of one CPU core
python tools/pictures.py gains      # what branches gain at growing budgets, from the stored results
python tools/pictures.py method     # the diagram alone
"""

import sys
from dataclasses import replace

import matplotlib
import torch
from matplotlib import pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import LinearSegmentedColormap

from bdense_nb import SFDConfig, load_teacher, sfd, trajectory
from bdense_nb.core import data_dir
from bdense_nb.diffusion.schedules import karras_sigmas
from bdense_nb.lab.differences import show_answer

STYLE = """text{font:15px sans-serif;fill:var(--ink)} .small{font-size:13px} .i{font-style:italic}
:root{--page:#fff;--ink:#1a1a1a;--line:#777;--soft:#ddd;--box:#f3f5f8;--cut:#b9b9b9;--a:#1f77b4;--b:#ff7f0e;--c:#2ca02c;--d:#d62728}
@media (prefers-color-scheme:dark){:root{--page:#16181c;--ink:#e8e8e8;--line:#999;--soft:#444;--box:#26292e;--cut:#666;
--a:#6ab0e3;--b:#ffb060;--c:#7fd07f;--d:#ff8080}}
.line{stroke:var(--line);stroke-width:2;fill:none} .box{fill:var(--box);stroke:var(--line);stroke-width:1.5}"""
COLOURS = 'abcd'
# of the points; neither pale nor dark, so that they are seen on white and on black
HUES = ('#d62728', '#c07000', '#2c9a2c', '#1f8fb4', '#8a5fd0', '#d62728')


def arrow(x1, y1, x2, y2, colour='line', dash='') -> str:
    "A straight arrow."
    dashed = f' stroke-dasharray="{dash}"' if dash else ''
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})" stroke-width="2"'
        f'{dashed} marker-end="url(#to-{colour})"/>'
    )


def text(x, y, words, kind='', anchor='middle') -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{words}</text>'


def method() -> str:
    "The teacher's four steps above, the student's one call below."
    heads = ''.join(
        f'<marker id="to-{c}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="var(--{c})"/></marker>'
        for c in ('line', *COLOURS)
    )
    parts = [
        f'<style>{STYLE}</style><defs>{heads}</defs>',
        '<rect width="560" height="360" rx="8" fill="var(--page)"/>',
        text(20, 34, 'teacher: four calls', anchor='start'),
        text(20, 196, 'student: one call', anchor='start'),
    ]
    states = [(130, 86), (230, 70), (330, 78), (430, 100), (530, 84)]
    names = ['x', 'y₁', 'y₂', 'y₃', 'y₄']
    levels = ['t', 's₁', 's₂', 's₃', 's₄']
    for (x1, y1), (x2, y2) in zip(states, states[1:]):
        parts.append(arrow(x1 + 12, y1, x2 - 13, y2))
    for k, ((x, y), name, level) in enumerate(zip(states, names, levels)):
        colour = COLOURS[k - 1] if k else 'ink'
        parts += [
            f'<circle cx="{x}" cy="{y}" r="9" fill="var(--{colour})"/>',
            text(x, y - 18, name, 'i'),
            text(x, 134, level, 'small i'),
        ]
    parts.append(text(20, 134, 'noise level', 'small', 'start'))
    parts += [
        '<line x1="20" y1="156" x2="540" y2="156" stroke="var(--soft)"/>',
        f'<circle cx="26" cy="280" r="9" fill="var(--ink)"/>{text(26, 258, "x", "i")}',
        arrow(39, 280, 62, 280),
        '<rect class="box" x="66" y="216" width="104" height="128" rx="10"/>',
        text(118, 270, 'trunk'),
        text(118, 292, 'the teacher’s', 'small'),
        text(118, 309, 'layers', 'small'),
    ]
    for k, colour in enumerate(COLOURS):
        y = 216 + 33 * k
        parts += [
            f'<rect x="180" y="{y}" width="66" height="28" rx="6" fill="none" stroke="var(--{colour})" stroke-width="2"/>',
            text(213, y + 19, f'head {k + 1}', 'small'),
            arrow(250, y + 14, 276, y + 14, colour),
            text(292, y + 19, f'D{"₁₂₃₄"[k]}', 'i'),
            arrow(308, y + 14, 366, y + 14, colour),
            text(394, y + 19, f'≈ y{"₁₂₃₄"[k]}', 'i'),
            text(
                484,
                y + 19,
                ('cut off', 'cut off', 'cut off', 'stays')[k] + ' after training',
                'small',
            ),
        ]
    parts += [
        text(316, 208, 'Euler’s step to sₖ', 'small'),
        text(484, 208, 'the head', 'small'),
        text(394, 208, 'loss', 'small'),
    ]
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="560" height="360" viewBox="0 0 560 360" role="img"><title>The method</title>{"".join(parts)}</svg>\n'


def walks() -> dict[str, tuple[list[float], torch.Tensor]]:
    "Three walks from the same noise: their levels, and their states made as large as data."
    teacher = load_teacher('spiral', 'cpu')
    cfg = SFDConfig(
        nfe=2,
        K=4,
        substeps=8,
        steps=400,
        batch=256,
        lr=2e-3,
        lr_schedule='cosine',
        branch_weights_end='endpoint',
        shape=(2,),
    )
    student = sfd(teacher, cfg, show=False)
    x, _ = student.start(range(400))
    coarse = replace(cfg).grids[1]
    found = {
        'teacher, 40 calls': trajectory(teacher, x, karras_sigmas(40, 0.006, 80.0), 'dpmpp3m'),
        'teacher, 2 calls': trajectory(teacher, x, coarse, afs=True),
        'student, 2 calls': trajectory(student.denoiser, x, coarse, afs=True),
    }
    return {
        name: (t.sigmas.tolist(), (t.xs / (1 + t.sigmas[:, None, None] ** 2).sqrt()).float())
        for name, t in found.items()
    }


def animation(frames: int = 41, first: int = 12) -> FuncAnimation:
    """All three walk at the same noise level at the same time; a walk of few steps jumps.
    It opens on the ends, which a still picture shows."""
    matplotlib.rcParams['animation.embed_limit'] = 1
    fig, axs = plt.subplots(1, 3, figsize=(7.2, 2.1), dpi=90, layout='constrained')
    paths = walks()
    clock = next(iter(paths.values()))[0]
    dots = []
    hues = LinearSegmentedColormap.from_list('hues', HUES)
    for ax, (name, (_, xs)) in zip(axs, paths.items()):
        ax.set(
            title=name, xlim=(-1.5, 1.5), ylim=(-1.15, 1.05), aspect='equal', xticks=[], yticks=[]
        )
        dots.append(ax.scatter(*xs[0].T, s=5, c=torch.atan2(*xs[0].T), cmap=hues, linewidths=0))

    def draw(i):
        level = clock[-1 if i < first else min(i - first, frames - 1)]
        for dot, (levels, xs) in zip(dots, paths.values()):
            dot.set_offsets(xs[sum(s >= level * 0.999 for s in levels) - 1])
        return dots

    return FuncAnimation(fig, draw, first + frames + 10, interval=110)


def main() -> None:
    asked = sys.argv[1:] or ['method', 'spiral', 'gains']
    if set(asked) - {'method', 'spiral', 'gains'}:
        sys.exit(__doc__)
    if 'method' in asked:
        (data_dir() / 'results' / 'method.svg').write_text(method(), encoding='utf-8')
    if 'spiral' in asked:
        animation().save(data_dir() / 'results' / 'spiral.gif', PillowWriter(fps=9))
    if 'gains' in asked:
        show_answer(data_dir() / 'results' / 'gains.png')


if __name__ == '__main__':
    main()
