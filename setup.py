"Packaging. Everything a person may want to change stands in settings.ini."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, assets, notebooks = (cfg['lib_path'] + part for part in ('', '.assets', '.nbs'))
optional = cfg['extras'].split()
extras = {
    name: cfg[f'{name}_requirements'].split()
    for name in (*optional, 'anomalies', 'notebooks', 'dev', 'docs')
}
for name in ('notebooks', 'dev'):
    extras[name] += [need for one in optional for need in extras[one]]


def readme() -> str:
    "README.md with absolute links: PyPI has no files beside it."
    text = (
        Path('README.md').read_text(encoding='utf-8')
        if Path('README.md').is_file()
        else cfg['description']
    )

    def absolute(m):
        return f'{m[1]}{cfg["git_url"]}/{"raw" if m[1].startswith("!") else "blob"}/{cfg["branch"]}/{m[2]})'

    return re.sub(r'(!?\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)\)', absolute, text)


statuses = [
    '1 - Planning',
    '2 - Pre-Alpha',
    '3 - Alpha',
    '4 - Beta',
    '5 - Production/Stable',
    '6 - Mature',
    '7 - Inactive',
]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme(),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license_expression={'apache2': 'Apache-2.0'}[cfg['license']],
    classifiers=[
        f'Development Status :: {statuses[int(cfg["status"]) - 1]}',
        f'Intended Audience :: {cfg["audience"]}',
        f'Natural Language :: {cfg["language"]}',
        'Programming Language :: Python :: 3',
    ],
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    packages=[
        lib,
        *(f'{lib}.{p.parent.name}' for p in sorted(Path(lib).glob('*/__init__.py'))),
        assets,
        notebooks,
    ],
    package_dir={
        assets: 'data',
        notebooks: 'nbs',
    },  # data/ and nbs/ travel in the wheel, as bdense_nb/assets/ and bdense_nb/nbs/
    package_data={assets: ['**/*'], notebooks: ['*.ipynb', '[a-z]*/*.ipynb']},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f'{lib}={lib}._modidx:d'],
    },
    zip_safe=False,
)
