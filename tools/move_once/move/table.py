"Where everything goes. MOVES: old module -> (new module, new notebook below nbs/, what its notebook is about: \"the notebook on ...\")."
PACKAGES = {
    'core': '',
    'diffusion': 'Schedules, denoisers, samplers, networks and data; it knows nothing of training.',
    'training': 'The loop that trains anything, its checkpoints and its devices; it knows nothing of diffusion.',
    'distillation': 'From a teacher to a student: branches, segments, losses, the hosts.',
    'evaluation': 'How far samples are from data and from a teacher: metrics, intervals, pictures.',
    'interop': 'Models of other libraries in, students for other libraries out.',
    'lab': 'Experiments, search, and what one looks at: needs the extra `lab`.',
    'app': 'The commands, what a run will cost, and the course.',
}
MOVES = {
    'schedules': ('diffusion.schedules', 'diffusion/01_schedules', 'schedules'),
    'teachers': ('diffusion.denoisers', 'diffusion/02_denoisers', 'denoisers'),
    'samplers': ('diffusion.samplers', 'diffusion/03_samplers', 'samplers'),
    'nets': ('diffusion.nets', 'diffusion/04_nets', 'networks'),
    'data': ('diffusion.data', 'diffusion/05_data', 'data'),
    'checkpoints': ('training.checkpoints', 'training/02_checkpoints', 'checkpoints'),
    'devices': ('training.devices', 'training/03_devices', 'devices'),
    'hooks': ('training.hooks', 'training/04_hooks', 'hooks'),
    'training': ('training.loop', 'training/05_loop', 'the training loop'),
    'branches': ('distillation.branches', 'distillation/02_branches', 'branches'),
    'targets': ('distillation.segments', 'distillation/03_segments', 'segments'),
    'losses': ('distillation.losses', 'distillation/04_losses', 'losses'),
    'trajectories': ('distillation.bank', 'distillation/05_bank', 'the bank of trajectories'),
    'students': ('distillation.students', 'distillation/06_students', 'students'),
    'sfd': ('distillation.sfd', 'distillation/07_sfd', 'SFD'),
    'variable': ('distillation.variable', 'distillation/08_variable', 'variable steps'),
    'progressive': ('distillation.progressive', 'distillation/09_progressive', 'Progressive Distillation'),
    'distill': ('distillation.distill', 'distillation/10_distill', 'all hosts together'),
    'intervals': ('evaluation.intervals', 'evaluation/01_intervals', 'intervals'),
    'metrics': ('evaluation.metrics', 'evaluation/02_metrics', 'metrics'),
    'features': ('evaluation.features', 'evaluation/03_features', 'feature spaces'),
    'viz': ('evaluation.pictures', 'evaluation/04_pictures', 'pictures'),
    'interop': ('interop.diffusers', 'interop/01_diffusers', 'other libraries'),
    'experiments': ('lab.experiments', 'lab/01_experiments', 'experiments'),
    'search': ('lab.search', 'lab/02_search', 'the search for branch weights'),
    'alignment': ('lab.alignment', 'lab/03_alignment', 'alignment'),
    'widgets': ('lab.explorers', 'lab/04_explorers', 'explorers'),
    'cli': ('app.shell', 'app/02_shell', 'the shell'),
    'commands': ('app.commands', 'app/03_commands', 'the commands'),
    'notebooks': ('app.course', 'app/04_course', 'the course'),
}
OPTIONAL = {'hooks', 'commands'}  # modules that are not at the top in every state of the tree, and need no old name
WITHOUT_COMMANDS = {'cli': ('app.commands', 'app/03_commands', 'the commands')}  # a tree whose `cli` holds the commands themselves
STEMS_EXTRA = {  # notebooks that a split makes: a name for them, as OVERRIDES uses it -> (new notebook, what it is about)
    'plans': ('app/01_plans', 'what a run will cost'),
    'teaching': ('distillation/01_teaching', 'training a teacher'),
    'export': ('interop/02_export', 'students for other libraries'),
    'config': ('training/01_config', 'configurations'),
}
OVERRIDES = {  # (new notebook, old number said there) -> what is meant since the split
    ('app/03_commands', '10d'): 'plans',
    ('app/03_commands', '10f'): 'export',
    ('distillation/06_students', '10f'): 'export',
}
TOP = '''load_teacher preset sfd progressive distill load_student sample trajectory branch fold from_diffusers as_denoiser compare
Student Sampler SFDConfig SFDVConfig PDConfig TrainConfig Hardware EDMDenoiser VPDenoiser FlowDenoiser GuidedDenoiser MixtureDenoiser
train_teacher check_teacher paired_error frechet_distance'''.split()
SPLITS = []
EDITS = {}

DOCS = 'tools/docs_sources.py'
EDITS = {
    'setup.py': [
        (r'packages=\[lib, assets, notebooks\]', "packages=[lib, *(f'{lib}.{p.parent.name}' for p in sorted(Path(lib).glob('*/__init__.py'))), assets, notebooks]", 're'),
    ],
    'tools/run_notebooks.py': [
        (r"^FOLDERS = \{[^\n]*$", """FOLDERS = {'diffusion': 'Diffusion', 'training': 'Training', 'distillation': 'Distillation', 'evaluation': 'Evaluation', 'interop': 'Other libraries', 'lab': 'The lab',
           'app': 'Commands', 'tutorials': 'Tutorials', 'gpu': 'On a GPU'}  # below nbs/, in reading order, and what the site calls them""", 're'),
        ("\"Every notebook in reading order: the library's, then each folder of `FOLDERS`.\"", '"Every notebook in reading order: those in nbs/ itself, then each folder of `FOLDERS`."'),
    ],
    'tests/test_notebooks.py': [
        ("if path.name == TWICE:", "if path.relative_to(NBS).as_posix() == TWICE:"),
    ],
    'tests/test_names.py': [
        ("import io\n", "import io\nimport re\n"),
        ("    if report.getvalue(): pytest.fail(report.getvalue(), pytrace=False)",
         "    found = [line for line in report.getvalue().splitlines() if not re.search(r\"import \\*' used|\\.\\*' imported but unused\", line)]  # old names are re-exported by a star\n"
         "    if found: pytest.fail('\\n'.join(found), pytrace=False)"),
    ],
    'tests/solutions.py': [
        ("zip(lesson_solutions()[name], exercises(name))", "zip(lesson_solutions().get(name, ()), exercises(name))"),
    ],
    'tests/test_claims.py': [
        ("'interop/01_diffusers': {'14.6'", "'interop/02_export': {'14.6'", 'maybe'),
        (r"'diffusion/02_denoisers': \{('1\.1': '[^']*')(?:, )?", r"'distillation/01_teaching': {\1},\n    'diffusion/02_denoisers': {", 're', 'maybe'),
    ],
    'nbs/app/*_course.ipynb': [
        ("[a](diffusion/03_samplers.", "[a](03_samplers.", 'maybe'),
    ],
    'tests/test_export.py': [
        ("        if module.name != '__init__.py': module.unlink()", "        if 'AUTOGENERATED' in module.read_text(): module.unlink()"),
        ("so that a module whose notebook is gone does not come back", "so that a module whose notebook is gone does not come back; `__init__` and old names are written by hand"),
    ],
    'tests/test_package.py': [
        (r"sorted\(p\.stem for p in \((root|ROOT)/'bdense_nb'\)\.glob\('[^']*'\)[^)]*\)",
         r"sorted('.'.join(p.relative_to(\1/'bdense_nb').with_suffix('').parts) for p in (\1/'bdense_nb').rglob('[a-z]*.py'))", 're'),
    ],
    'tests/test_docs.py': [
        (r"^    assert link_names\('as in [^\n]*$", "    assert link_names('as in tutorial 2', page) == 'as in [tutorial 2](../tutorials/2_why_intermediate_points.ipynb)'", 're'),
        ("(tutorials/7_bring_your_own_model.ipynb)' and link_names('notebook 7', page) == 'notebook 7'", "(../tutorials/7_bring_your_own_model.ipynb)' and link_names('tutorial 17', page) == 'tutorial 17'"),
        ("*(root/'nbs').glob('*.ipynb')]", "*(root/'nbs').rglob('*.ipynb')]"),
    ],
    'docs/conf.py': [
        ("from docs_sources import GIT, LIB, SETTINGS, indented, rst  # noqa: E402", "from docs_sources import GIT, SETTINGS, indented, module_of, rst  # noqa: E402"),
        ("    module = name.removeprefix(f'{LIB}.').split('.')[0]\n", "    module = module_of(name)\n"),
    ],
    DOCS: [
        ('''        parts = full.split('.')
        for i in range(len(parts)):
            if i < 3: names['.'.join(parts[i:])].append(full)  # a method needs its class
''', '''        parts, module = full.split('.'), module_of(full)
        for i in range(module.count('.') + 3): names['.'.join(parts[i:])].append(full)  # a method needs its class
'''),
        ('''def find_symbol(text: str''', '''def module_of(full: str) -> str:
    "The module in which a symbol's full name lies, without the library's own name."
    return next((p.module for p in pages() if p.module and full.startswith(f'{LIB}.{p.module}.')), '')


def find_symbol(text: str'''),
        (r"Code that names an exported symbol, `[^`]*` and `tutorial 2` become links;", "Code that names an exported symbol, and `tutorial 2`, become links;", 're'),
        ('''    def notebook(m):
        folder = {'notebook': '', 'tutorial': 'tutorials/'}[m[1].lower()]
        path = next((p.path for p in pages() if p.doc.startswith(f'{folder}{m[2]}_')), None)
''', '''    def tutorial(m):
        path = next((p.path for p in pages() if p.doc.startswith(f'tutorials/{m[1]}_')), None)
'''),
        (r"re.sub(r'\b(notebook|tutorial) (\d+[a-z]?)\b', notebook, text, flags=re.I)", r"re.sub(r'\btutorial (\d+[a-z]?)\b', tutorial, text, flags=re.I)"),
        ("    names = [s for s in symbols().values() if s.page == page and s.cell == cell.id and s.name.count('.') == 2]",
         "    names = [s for s in symbols().values() if s.page == page and s.cell == cell.id and s.name.rpartition('.')[0] == f'{LIB}.{page.module}']"),
        ("(s.name.count('.') == 2 or s.name.rpartition('.')[0] not in symbols())]", "(s.name.rpartition('.')[0] == f'{LIB}.{module}' or s.name.rpartition('.')[0] not in symbols())]"),
        ("    parts = {'The course': entries('')} |", "    parts = {'The library': entries('')} |"),
        (r"return re.sub(r'(?<=See )`([\w.]+)`', r'{py:obj}`~bdense_nb.\1`', text)", r"return re.sub(r'(?<=See )`([\w.]+)`', lambda m: f'{{py:obj}}`~{find_symbol(m[1])}`', text)"),
    ],
    'CONTRIBUTING.md': [
        (r"then a cell `#\| default_exp name`\. Its module gets a\nline in the table of layers in `tests/test_imports\.py`\.", "then a cell `#| default_exp package.name`, and lies in the folder of\nits package. Imports go down only: `tests/test_imports.py` has the floors.", 're'),
    ],
    'nbs/index.ipynb': [
        (r"^parts = \{.*?\}$", """packages = ('diffusion', 'training', 'distillation', 'evaluation', 'interop', 'lab', 'app')
parts = {'tutorial': 'tutorials/*.ipynb', 'core': '[0-9]*.ipynb', **{p: f'{p}/*.ipynb' for p in packages},
         'on a GPU': 'gpu/*.ipynb'}""", 're'),
        (r"The numbered notebooks build every piece of it, each one idea and one module; the short way through them is 03, 04, 06, 07, 08, 10a\.",
         "The library's notebooks build every piece of it, each one idea and one module, in a folder for each package; the short way through them is [denoisers](diffusion/02_denoisers.ipynb), [samplers](diffusion/03_samplers.ipynb), [branches](distillation/02_branches.ipynb), [segments](distillation/03_segments.ipynb), [losses](distillation/04_losses.ipynb), [SFD](distillation/07_sfd.ipynb).", 're'),
    ],
}

RING = """angle = torch.arange(8)*2*math.pi/8
ring = MixtureDenoiser(torch.stack([angle.cos(), angle.sin()], 1), torch.linspace(.04, .12, 8), torch.arange(1., 9.))"""
SPLITS = [
    dict(of='training', to='training.config', doc='training/01_config',
         summary='What is optimised, and how its numbers are computed: two configurations that check themselves.',
         sections=['A configuration that checks itself'], names=['TrainConfig', 'Hardware'],
         intro='*Cost: a few seconds; no GPU.*', below=True,
         subs=[("It works. Now the complaints.", "It works. Now the complaints. (What a run is told stands in two configurations that check themselves: [the notebook on configurations](training/01_config.ipynb).)")]),
    dict(of='interop', to='interop.export', doc='interop/02_export',
         summary='A student leaves the package: as a diffusers folder with a model card, as one ONNX step, or as plain weights.',
         sections=['Branches, and back', 'Out: what stock diffusers can do', 'One step as an ONNX file, or weights alone'],
         intro='*Cost: about fifteen seconds on one CPU core, under 2 GB of memory, no GPU, no download. It needs the extras `diffusers` and `onnx`.*',
         bridge=[('code', '''def unet_of(**more):
    torch.manual_seed(0)
    return UNet2DModel(**dict(dict(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=('DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'UpBlock2D')), **more)).eval()
unet = unet_of()''')],
         subs=[("abs(a - how['start']) < 1e-6", f"abs(a - {80*(1 - 70/6401**.5):.7f}) < 1e-6"), ('the last equation before `euler_grid`', 'an Euler step with the analytic slope'),
               ('- A student is written so that stock diffusers loads and samples it; an analytic first step is a factor on the noise.\n', '')],
         end=[('markdown', '''## Summary

- A student is written so that stock diffusers loads and samples it; an analytic first step is a factor on the noise.
- One step of a student is an ONNX file, or the weights alone; `sampling.json` says how to step.''')]),
    dict(of='teachers', to='distillation.teaching', doc='distillation/01_teaching',
         summary='A network becomes a teacher: the objective of denoising, and a training that a stopped run resumes exactly.',
         sections=['The training objective', 'Training one'], names=['edm_loss', 'train_teacher'],
         helpers=r'^plt\.rcParams', imports={'MixtureDenoiser': 'from bdense_nb.teachers import MixtureDenoiser'},
         intro='*Cost: about ten seconds on one CPU core, 500 MB; no GPU, no download.*',
         bridge=[('markdown', 'The data are eight blobs on a ring, for which the exact denoiser is known ([notebook 03](03_teachers.ipynb)).'), ('code', RING)],
         stay_bridge=('On disk', 'code', """class NaiveDenoiser(EDMDenoiser): 'A class that nobody could load.'
trained = {kind: kind(MLP(width=64), sigma_data=.7).eval().requires_grad_(False)
           for kind in (EDMDenoiser, NaiveDenoiser)}"""),
         subs=[("dict(data='ring', steps=cfg.steps)", "dict(data='ring')"),
               ("The trained networks here saw points in the plane. That EDM's scaling wins *there*, at one budget, one seed and one network size, is an illustration; that it wins on images is Karras et al.'s result, not ours. ", ''),
               ("The naive class of this notebook is refused", "A class that this package does not know is refused")],
         end=[('markdown', """## What this did not show

The trained networks here saw points in the plane. That EDM's scaling wins *there*, at one budget, one seed and one network size, is an illustration; that it wins on images is Karras et al.'s result, not ours.""")]),
    dict(of='distill', to='app.plans', doc='app/01_plans',
         summary='What a run will take, before it is paid for: seconds and memory, from a few iterations of the run itself.',
         sections=['What a run costs here'],
         intro="""*Cost: about fifteen seconds on one CPU core, no GPU, no download.*

How many samples go through the networks is counted without running anything (`training_cost`). Here: how long that takes on this machine, and how much memory.""",
         bridge=[('code', """angle = torch.arange(8)*2*torch.pi/8
ring = MixtureDenoiser(torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), .1), torch.ones(8))
points = ring.sample(20_000)
torch.manual_seed(0)
teacher = train_teacher(EDMDenoiser(MLP(width=64, depth=2), .7), points, None,
                        TrainConfig(250, 5e-3, schedule='cosine', ema=.98), 256, show=False).ema
configs = {'SFD with branches': SFDConfig(steps=30, batch=128, lr=2e-3, lr_schedule='cosine', shape=(2,)),
           'PD': PDConfig(16, 2, K=1, updates=30, batch=256, lr=2e-3)}
students = {'SFD with branches': sfd(teacher, configs['SFD with branches'], show=False)}""")],
         imports={'sfd': 'from bdense_nb.sfd import sfd', 'SFDConfig': 'from bdense_nb.sfd import SFDConfig', 'MLP': 'from bdense_nb.nets import MLP'},
         subs=[("; `estimate_run` tries a few iterations and says what the run takes here, in seconds and in memory", '')],
         end=[('markdown', """## Summary

- The real loop, a few samples, four iterations: from that, seconds and memory of the whole run. Nothing is written and the teacher is not touched.
- Where the run's own batch is too slow to try, a line through the last two sizes is extrapolated.""")]),
]
