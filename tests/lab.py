"A real JupyterLab for tests: a server of its own, and what a person does in it."

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return session?.isReady && session.session?.kernel?.connectionStatus === 'connected' && session.session.kernel.status === 'idle';
}"""
SETTINGS = {  # all cells are drawn, and nothing is asked of the network
    '@jupyterlab/notebook-extension/tracker': {'windowingMode': 'none'},
    '@jupyterlab/apputils-extension/notification': {
        'fetchNews': 'false',
        'checkForUpdates': False,
        'doNotDisturbMode': True,
    },
}


def plain(options: list[str]) -> list[str]:
    code = 'from forks import no_parsers_of_addresses; no_parsers_of_addresses(); from jupyterlab.labapp import main; main()'
    return [
        sys.executable,
        '-c',
        f'import sys; sys.path.append({str(TOOLS)!r}); {code}',
        '--allow-root',
        *options,
    ]


@contextmanager
def server(folder: Path, home: Path, command=plain):
    "JupyterLab (what `command` makes of its options, started in a folder), with settings and history in another; its address."
    for name, values in SETTINGS.items():
        path = home / 'settings' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    page = home / 'config' / 'labconfig' / 'page_config.json'
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps(dict(buildCheck=False, buildAvailable=False)))  # else it asks yarn
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    folders = {
        'HOME': '',
        'JUPYTER_CONFIG_DIR': 'config',
        'JUPYTER_DATA_DIR': 'data',
        'JUPYTER_RUNTIME_DIR': 'runtime',
        'JUPYTERLAB_SETTINGS_DIR': 'settings',
        'JUPYTERLAB_WORKSPACES_DIR': 'workspaces',
        'IPYTHONDIR': 'ipython',
    }
    options = [
        '--no-browser',
        '--ip=127.0.0.1',
        f'--port={port}',
        '--ServerApp.port_retries=0',
        '--IdentityProvider.token=',
        '--expose-app-in-browser',
    ]
    with open(home / 'server.log', 'w') as log:
        process = subprocess.Popen(
            command(options),
            cwd=folder,
            env=os.environ | {k: str(home / v) for k, v in folders.items()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f'http://127.0.0.1:{port}'
        _wait(url, process, home / 'server.log')
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            with urlopen(f'{url}/api'):
                return
        except (URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f'JupyterLab did not start:\n{log.read_text()[-3000:]}')


def open_notebook(page, url: str, name: str = '') -> None:
    "Open it (default: what the server shows by itself) and wait until its kernel is there."
    page.goto(f'{url}/lab/tree/{name}?reset' if name else url)
    page.wait_for_selector('.jp-NotebookPanel .jp-Cell', timeout=120_000)
    page.wait_for_function(READY, timeout=120_000, polling=100)


def open_another(page, path: str) -> None:
    "Close the notebook that is open, whose kernel goes on, and open one without loading JupyterLab anew."
    page.evaluate('() => { jupyterapp.shell.currentWidget.dispose(); }')  # asks for nothing
    page.evaluate(
        "async path => { await jupyterapp.commands.execute('docmanager:open', {path}); }", path
    )
    page.wait_for_function(
        'path => jupyterapp.shell.currentWidget?.context?.path === path', arg=path, polling=100
    )
    page.wait_for_function(READY, timeout=120_000, polling=100)


def menu(page, name: str, command: str) -> None:
    page.locator('.lm-MenuBar-itemLabel', has_text=name).first.click()
    page.locator(f'.lm-Menu-item[data-command="{command}"]').click()


def run_all(page) -> None:
    menu(page, 'Run', 'runmenu:run-all')


def restart_and_run_all(page) -> None:
    menu(page, 'Kernel', 'kernelmenu:restart-and-clear')
    page.locator('.jp-Dialog .jp-mod-accept').click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /^\\[ \\]:?$/.test(p.textContent.trim()))",
        timeout=60_000,
        polling=100,
    )
    page.wait_for_function(READY, timeout=120_000, polling=100)
    run_all(page)


def wait_until_done(page, timeout: float = 300) -> None:
    "Until every code cell has a number and the kernel is idle."
    page.wait_for_function(
        "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /^\\[\\d+\\]:?$/.test(p.textContent.trim()))",
        timeout=1000 * timeout,
        polling=100,
    )
    page.wait_for_function(READY, timeout=1000 * timeout, polling=100)


def errors(page) -> list[str]:
    "What error outputs say."
    return page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
